"""The circuit in qsim, by way of Cirq (complex<float>).  qsim_circuit.py QUBITS"""
import sys

import circuit
import cirq
import qsimcirq

qubits = int(sys.argv[1])
began = circuit.begin()
line = cirq.LineQubit.range(qubits)
operations = []
for name, q, x in circuit.gates(qubits):
    if name == "ry":
        operations.append(cirq.ry(x)(line[q]))
    elif name == "rx":
        operations.append(cirq.rx(x)(line[q]))
    else:
        operations.append(cirq.CZ(line[q], line[x]))
simulator = qsimcirq.QSimSimulator(qsimcirq.QSimOptions(cpu_threads=2, max_fused_gate_size=3))
_, vector, _ = simulator.simulate_into_1d_array(cirq.Circuit(operations))
circuit.finish(began, vector)
