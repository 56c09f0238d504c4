"""The circuit in PennyLane's lightning.qubit (complex<double>).  lightning_circuit.py QUBITS"""
import sys

import circuit
import numpy
import pennylane

qubits = int(sys.argv[1])
began = circuit.begin()
device = pennylane.device("lightning.qubit", wires=qubits)


@pennylane.qnode(device)
def program():
    for name, q, x in circuit.gates(qubits):
        if name == "ry":
            pennylane.RY(x, q)
        elif name == "rx":
            pennylane.RX(x, q)
        else:
            pennylane.CZ([q, x])
    return pennylane.state()


circuit.finish(began, numpy.asarray(program()))
