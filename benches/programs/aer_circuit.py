"""The circuit in qiskit-aer's state-vector simulator (complex<double>).  aer_circuit.py QUBITS"""
import sys

import circuit
import numpy
from qiskit import QuantumCircuit
from qiskit_aer import AerSimulator

qubits = int(sys.argv[1])
began = circuit.begin()
program = QuantumCircuit(qubits)
for name, q, x in circuit.gates(qubits):
    if name == "ry":
        program.ry(x, q)
    elif name == "rx":
        program.rx(x, q)
    else:
        program.cz(q, x)
program.save_statevector()
# Aer refuses beforehand what the machine's memory would not hold; here the budget decides.
simulator = AerSimulator(method="statevector", max_memory_mb=1 << 20)
result = simulator.run(program, shots=1).result()
if not result.success:
    sys.exit(f"aer: {result.status}")
circuit.finish(began, numpy.asarray(result.data(0)["statevector"]))
