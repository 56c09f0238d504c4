"""The circuit that every program of this folder runs, and what it says at the end. Imported by the others.

Two layers of rotations by angles of a fixed sequence around a chain of CZ: an entangled state whose amplitudes all differ, so that
compression finds little. A program prints one JSON line: a digest of all amplitudes, byte by byte, and its own seconds.
"""
import hashlib
import json
import resource
import time


def angles():
    seed = 12345
    while True:
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        yield 0.1 + 2.8 * seed / (1 << 31)


def gates(qubits):
    """(name, qubit, angle or other qubit)"""
    angle = angles()
    for q in range(qubits):
        yield "ry", q, next(angle)
    for q in range(0, qubits - 1):
        yield "cz", q, q + 1
    for q in range(0, qubits, 2):
        yield "rx", q, next(angle)


def begin():
    return time.monotonic()


def finish(began, vector):
    """`vector` is a one-dimensional NumPy array of all amplitudes."""
    digest = hashlib.sha256()
    step = 1 << 18
    for first in range(0, len(vector), step):
        digest.update(vector[first:first + step].tobytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"amplitudes": len(vector), "digest": digest.hexdigest(), "seconds": time.monotonic() - began,
                      "peak_rss": peak}), flush=True)
