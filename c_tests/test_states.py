#!/usr/bin/env python3
"""States by chunk against theory, in a memory cgroup much smaller than they are: usage: test_states.py STATEVEC QUBITS LIMIT.

GHZ (two amplitudes are left), Grover's search (the marked state's probability is known), and layers of random gates followed by their
inverses (everything comes back to |0...0>); each without loss, and within an error budget: then what is lost must be what was accounted,
at most. QUBITS must be even, and 12 or more. Exit status 77: not possible here, with the reason.
"""
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "benches"))
from kernel_swap import Cage, Refused, size_of  # noqa: E402

HEAD = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[%d];\n'
ERROR_BUDGET = 1e-3
BESIDE = 64 << 20  # what the program needs by itself
ITERATIONS = 3     # of Grover's search


def ghz(n):
    return HEAD % n + "h q[0];\n" + "".join(f"cx q[{q}],q[{q + 1}];\n" for q in range(n - 1))


def grover(n):
    """Search among the first n/2 + 1 qubits; the other n/2 - 1 hold the ladder of products that a many-fold controlled Z needs."""
    search = n // 2 + 1
    draw, text = random.Random(n), [HEAD % n]
    marked = draw.randrange(1 << search)

    def flip_all_ones():
        """A sign on |1...1> of the search's qubits."""
        ladder = [f"ccx q[0],q[1],q[{search}];\n"]
        ladder += [f"ccx q[{j + 2}],q[{search + j}],q[{search + j + 1}];\n" for j in range(search - 3)]
        top = search + search - 3
        return ladder + [f"cz q[{search - 1}],q[{top}];\n"] + ladder[::-1]

    text += [f"h q[{q}];\n" for q in range(search)]
    for _ in range(ITERATIONS):
        zeros = [f"x q[{q}];\n" for q in range(search) if not marked >> q & 1]
        text += zeros + flip_all_ones() + zeros
        mirror = [f"h q[{q}];\n" for q in range(search)] + [f"x q[{q}];\n" for q in range(search)]
        text += mirror + flip_all_ones() + mirror[::-1]
    angle = math.asin(2 ** (-search / 2))
    return "".join(text), format(marked, f"0{n}b"), math.sin((2 * ITERATIONS + 1) * angle) ** 2


def there_and_back(n, gates):
    draw, done = random.Random(gates * n), []
    while len(done) < gates:
        for q in range(n):
            angles = [draw.uniform(0, math.pi), draw.uniform(0, 2 * math.pi), draw.uniform(0, 2 * math.pi)]
            done.append(("u3", angles, (q,)))
        order = list(range(n))
        draw.shuffle(order)
        done += [("cx", [], pair) for pair in zip(order[::2], order[1::2])]
    done = done[:gates]
    back = [(name, [-angles[0], -angles[2], -angles[1]] if angles else [], where) for name, angles, where in reversed(done)]
    spell = lambda gate: "%s%s %s;\n" % (gate[0], "(%s)" % ",".join("%.17g" % a for a in gate[1]) if gate[1] else "", ",".join(f"q[{q}]" for q in gate[2]))
    return HEAD % n + "".join(map(spell, done + back))


def run(program, path, qubits, limit, error_budget, most):
    environment = dict(os.environ, QMEM_SWAP_DIR=os.environ.get("QMEM_SWAP_DIR", os.path.join(ROOT, "target")))
    command = [program, "--chunked", "--budget", str(limit - BESIDE), "--error-budget", str(error_budget), "--stats", "--shots", "0",
               "--probabilities", str(most), path]
    with Cage(limit, "none", ROOT) as cage:
        done = cage.run(command, capture_output=True, text=True, env=environment)
        peak = cage.stats()["cgroup_peak_bytes"] or 0
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()[-600:]}")
    found = re.search(r"^([0-9.]+) s, norm ([0-9.]+)$", done.stderr, re.M)
    visits = re.search(r"by chunk: (\d+) visits", done.stderr)
    return {"probability": {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}, "seconds": float(found[1]),
            "norm": float(found[2]), "spent": float(re.search(r"infidelity spent ([0-9.e+-]+)", done.stderr)[1]), "visits": int(visits[1]), "peak": peak}


def main():
    program, qubits, limit = sys.argv[1], int(sys.argv[2]), size_of(sys.argv[3])
    need = (16 << qubits) + (1 << 30)
    if shutil.disk_usage(os.environ.get("QMEM_SWAP_DIR", os.path.join(ROOT, "target"))).free < need:
        print(f"skipped: {need >> 30} GiB of disk are needed for swapping")
        return 77
    zeros, ones = "0" * qubits, "1" * qubits
    search, marked, chance = grover(qubits)
    circuits = [("GHZ", ghz(qubits), {zeros: 0.5, ones: 0.5}), ("Grover", search, {marked: chance}),
                ("100 gates and back", there_and_back(qubits, 100), {zeros: 1.0})]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "circuit.qasm")
        for name, text, theory in circuits:
            with open(path, "w") as file:
                file.write(text)
            for error_budget in (0, ERROR_BUDGET):
                try:
                    got = run(program, path, qubits, limit, error_budget, len(theory))
                except Refused as reason:
                    print(f"skipped: {reason}")
                    return 77
                # By the infidelity e the amplitude of one state changes by sqrt(e) at most, its probability p by 2 sqrt(p e) + e.
                off = max(abs(got["probability"].get(state, 0.0) - p) - (2 * math.sqrt(p * got["spent"]) + got["spent"]) for state, p in theory.items())
                if len(theory) == 1 and 1.0 in theory.values():  # here the fidelity itself is seen
                    off = max(off, (1 - got["probability"].get(zeros, 0.0)) - got["spent"])
                good = off < 1e-9 and got["spent"] <= error_budget and got["peak"] <= limit
                wrong += not good
                print(f"{'ok   ' if good else 'WRONG'} {qubits} qubits, {name}: {got['seconds']:.1f} s, {got['visits']} visits, cgroup's peak {got['peak'] >> 20} MiB of "
                      f"{limit >> 20}; allowed {error_budget:g}, spent {got['spent']:.3g}; " + ", ".join(f"p = {got['probability'].get(s, 0):.12g} ({p:.12g})" for s, p in theory.items()), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
