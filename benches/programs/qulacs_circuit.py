"""The circuit in qulacs (complex<double>).  qulacs_circuit.py QUBITS"""
import sys

import circuit
from qulacs import QuantumCircuit, QuantumState

qubits = int(sys.argv[1])
began = circuit.begin()
state = QuantumState(qubits)
program = QuantumCircuit(qubits)
for name, q, x in circuit.gates(qubits):
    if name == "ry":
        program.add_RY_gate(q, x)
    elif name == "rx":
        program.add_RX_gate(q, x)
    else:
        program.add_CZ_gate(q, x)
program.update_quantum_state(state)
circuit.finish(began, state.get_vector())
