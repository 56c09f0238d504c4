"""State vectors for the codecs' benchmark, made by a real simulator (qulacs) and kept in target/bench/states as raw complex128.

Haar: a normalised Gaussian vector. TFIM: a quench of the transverse-field Ising ring from |0...0>, second-order Trotter. QAOA: two
layers of MaxCut on a random 3-regular graph. QFT: of a basis state, through the circuit. Grover: six iterations on one mark.
"""
import math
import os
import random

import numpy


def haar(n):
    generator = numpy.random.default_rng(2024)
    state = generator.standard_normal(2 << n).view(numpy.complex128)
    return state / numpy.linalg.norm(state)


def run(n, build):
    import qulacs
    state = qulacs.QuantumState(n)
    circuit = qulacs.QuantumCircuit(n)
    build(circuit)
    circuit.update_quantum_state(state)
    return state.get_vector()


def tfim(n, steps=10, dt=0.1, field=1.0):
    def build(circuit):
        for _ in range(steps):
            for q in range(n):
                circuit.add_RX_gate(q, field * dt)
            for q in range(n):
                a, b = q, (q + 1) % n
                circuit.add_CNOT_gate(a, b)
                circuit.add_RZ_gate(b, 2 * dt)
                circuit.add_CNOT_gate(a, b)
            for q in range(n):
                circuit.add_RX_gate(q, field * dt)
    return run(n, build)


def regular(n, degree=3):
    """A random simple regular graph: the pairing model until no loop and no double edge is left."""
    generator = random.Random(7)
    while True:
        ends = [v for v in range(n) for _ in range(degree)]
        generator.shuffle(ends)
        edges = {tuple(sorted(pair)) for pair in zip(ends[::2], ends[1::2])}
        if len(edges) == n * degree // 2 and all(a != b for a, b in edges):
            return sorted(edges)


def qaoa(n, angles=((0.42, 0.61), (0.74, 0.35))):
    edges = regular(n)

    def build(circuit):
        for q in range(n):
            circuit.add_H_gate(q)
        for gamma, beta in angles:
            for a, b in edges:
                circuit.add_CNOT_gate(a, b)
                circuit.add_RZ_gate(b, gamma)
                circuit.add_CNOT_gate(a, b)
            for q in range(n):
                circuit.add_RX_gate(q, 2 * beta)
    return run(n, build)


def qft(n, basis=1234567):
    def build(circuit):
        import qulacs.gate as gate
        for q in range(n):
            if basis >> q & 1:
                circuit.add_X_gate(q)
        for q in reversed(range(n)):
            circuit.add_H_gate(q)
            for control in range(q):
                phase = gate.to_matrix_gate(gate.U1(q, math.pi / 2 ** (q - control)))
                phase.add_control_qubit(control, 1)
                circuit.add_gate(phase)
        for q in range(n // 2):
            circuit.add_SWAP_gate(q, n - 1 - q)
    return run(n, build)


def grover(n, iterations=6, marked=0b1011001110001011010011):
    marked &= (1 << n) - 1

    def build(circuit):
        import qulacs.gate as gate
        flip = gate.to_matrix_gate(gate.Z(n - 1))
        for q in range(n - 1):
            flip.add_control_qubit(q, 1)
        for q in range(n):
            circuit.add_H_gate(q)
        for _ in range(iterations):
            for q in range(n):
                if not marked >> q & 1:
                    circuit.add_X_gate(q)
            circuit.add_gate(flip)
            for q in range(n):
                if not marked >> q & 1:
                    circuit.add_X_gate(q)
            for q in range(n):
                circuit.add_H_gate(q)
                circuit.add_X_gate(q)
            circuit.add_gate(flip)
            for q in range(n):
                circuit.add_X_gate(q)
                circuit.add_H_gate(q)
    return run(n, build)


STATES = {"Haar": haar, "TFIM": tfim, "QAOA": qaoa, "QFT": qft, "Grover": grover}


def load(name, n, directory):
    """The state as an array, from its file if it was made before."""
    path = os.path.join(directory, f"{name}-{n}.c128")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        STATES[name](n).tofile(path + ".new")
        os.replace(path + ".new", path)
    return numpy.fromfile(path, dtype=numpy.complex128)
