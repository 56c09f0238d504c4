"""Tests of the example simulator: amplitudes against qulacs, error messages to the column, fused against unfused, threads, samples.
Called by test_qasm.sh with the program and, optionally, circuits; circuits in ../shared/data/circuits are added where they are."""
import glob
import math
import os
import random
import re
import subprocess
import sys
import tempfile

import numpy as np

from qasm_reference import Circuit

TOLERANCE = 1e-12
GATES = {  # name: (parameters, qubits)
    "u3": (3, 1), "u2": (2, 1), "u1": (1, 1), "cx": (0, 2), "id": (0, 1), "u0": (1, 1), "u": (3, 1), "p": (1, 1), "x": (0, 1), "y": (0, 1),
    "z": (0, 1), "h": (0, 1), "s": (0, 1), "sdg": (0, 1), "t": (0, 1), "tdg": (0, 1), "rx": (1, 1), "ry": (1, 1), "rz": (1, 1), "sx": (0, 1),
    "sxdg": (0, 1), "cz": (0, 2), "cy": (0, 2), "swap": (0, 2), "ch": (0, 2), "ccx": (0, 3), "cswap": (0, 3), "crx": (1, 2), "cry": (1, 2),
    "crz": (1, 2), "cu1": (1, 2), "cp": (1, 2), "cu3": (3, 2), "cu": (4, 2), "csx": (0, 2), "rxx": (1, 2), "rzz": (1, 2), "rccx": (0, 3),
    "rc3x": (0, 4), "c3x": (0, 4), "c3sqrtx": (0, 4), "c4x": (0, 5), "U": (3, 1), "CX": (0, 2),
}
HEAD = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
failures = []


def check(good, what):
    if not good:
        failures.append(what)
        print("FAIL", what)


def run(program, *arguments):
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def amplitudes(program, path, scratch, *options):
    dump = os.path.join(scratch, "state")
    result = run(program, "--no-final-measure", "--dump", dump, *options, path)
    if result.returncode != 0:
        raise RuntimeError(result.stderr.strip())
    return np.memmap(dump, dtype=np.complex128, mode="r")


def distance(ours, theirs):
    """Largest difference of an amplitude after the global phase is taken out."""
    step, overlap, worst = 1 << 22, 0, 0.0
    for i in range(0, len(theirs), step):
        overlap += np.vdot(ours[i:i + step], theirs[i:i + step])
    phase = overlap / abs(overlap)
    for i in range(0, len(theirs), step):
        worst = max(worst, np.abs(ours[i:i + step] * phase - theirs[i:i + step]).max())
    return worst


# ---- circuits ----

def ghz(n):
    return HEAD + f"qreg q[{n}];\nh q[0];\n" + "".join(f"cx q[{i}],q[{i + 1}];\n" for i in range(n - 1))


def qft(n):
    lines = [f"x q[{i}];" for i in range(0, n, 3)]
    for i in reversed(range(n)):
        lines.append(f"h q[{i}];")
        lines += [f"cu1(pi/2^{i - j}) q[{j}],q[{i}];" for j in reversed(range(i))]
    lines += [f"swap q[{i}],q[{n - 1 - i}];" for i in range(n // 2)]
    return HEAD + f"qreg q[{n}];\n" + "\n".join(lines) + "\n"


def adder(n):
    """Cuccaro's ripple-carry adder, gates defined in the file."""
    text = HEAD + "gate maj a,b,c { cx c,b; cx c,a; ccx a,b,c; }\ngate uma a,b,c { ccx a,b,c; cx c,a; cx a,b; }\n"
    text += f"qreg cin[1];\nqreg a[{n}];\nqreg b[{n}];\nqreg cout[1];\nh a;\nx b[0];\nry(0.3) b[{n - 1}];\nmaj cin[0],b[0],a[0];\n"
    text += "".join(f"maj a[{i}],b[{i + 1}],a[{i + 1}];\n" for i in range(n - 1)) + f"cx a[{n - 1}],cout[0];\n"
    text += "".join(f"uma a[{i}],b[{i + 1}],a[{i + 1}];\n" for i in reversed(range(n - 1))) + "uma cin[0],b[0],a[0];\n"
    return text


def random_circuit(n, gates, seed):
    """Over the whole library, with broadcast, expressions, several registers and a definition of its own."""
    r = random.Random(seed)
    split = r.randrange(1, n) if n > 1 else 1
    names = [f"a[{i}]" for i in range(split)] + [f"b[{i}]" for i in range(n - split)]
    text = HEAD + "// random\ngate own(x,y) c,d { u3(x/2,-y,sin(x)^2) c; barrier c,d; cu1(x*y) c,d; rx(-(x+y)/3) d; }\n"
    text += f"qreg a[{split}];\n" + (f"qreg b[{n - split}];\n" if n > split else "") + "h a;\n"
    table = {**GATES, "own": (2, 2)}
    usable = [g for g, (_, q) in table.items() if q <= n]
    for _ in range(gates):
        name = r.choice(usable)
        params, qubits = table[name]
        values = [r.choice([f"{r.uniform(-4, 4):.6f}", f"pi/{r.randrange(1, 9)}", f"-2*pi*{r.random():.4f}+1e-3", "sqrt(2)-ln(3)*cos(0.5)", "exp(-1)^2"])
                  for _ in range(params)]
        text += name + (f"({','.join(values)})" if params else "") + " " + ",".join(r.sample(names, qubits)) + ";\n"
    return text


def own_circuits():
    for n in (1, 2, 5, 9, 14, 18):
        yield f"ghz {n}", ghz(n)
    for n in (1, 3, 10, 16, 19):
        yield f"qft {n}", qft(n)
    for n in (2, 5, 8):
        yield f"adder {n}", adder(n)
    for name, (params, qubits) in GATES.items():  # each gate alone, on a state without symmetry
        for order in (list(range(qubits)), list(reversed(range(qubits)))):
            prepare = "".join(f"ry(0.{3 + i}) q[{i}];\nrz(0.{5 + i}) q[{i}];\n" for i in range(6)) + "cx q[0],q[3];\ncx q[2],q[5];\ncx q[4],q[1];\n"
            values = f"({','.join(['0.7', '-1.1', '2.3', '0.4'][:params])})" if params else ""
            yield f"{name} {order}", HEAD + f"qreg q[6];\n{prepare}{name}{values} {','.join(f'q[{i}]' for i in order)};\n"
    for seed, n in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20)):
        yield f"random {n} seed {seed}", random_circuit(n, 300, seed)


def compare(program, name, path, scratch):
    with open(path) as file:
        circuit = Circuit(file.read())
    theirs = circuit.state()
    worst = distance(amplitudes(program, path, scratch), theirs)
    check(worst < TOLERANCE, f"{name}: an amplitude is off by {worst:.3g}")
    return worst


# ---- errors: text, line, column, part of the message ----

Q = HEAD + "qreg q[3];\ncreg c[2];\n"  # the next line is 5
ERRORS = [
    ("", 1, 1, "expected 'OPENQASM 2.0;'"), ("OPENQASM 3.0;", 1, 10, "expected version 2.0"), ("OPENQASM 2.0\nqreg q[1];", 2, 1, "expected ';'"),
    (HEAD, 3, 1, "no qubits"), ('OPENQASM 2.0;\ninclude "other.inc";', 2, 9, 'expected "qelib1.inc"'),
    ('OPENQASM 2.0;\ninclude "qelib1.inc;\nqreg q[1];', 2, 9, "a string without end"), ("OPENQASM 2.0;\nqreg q[1];\nh q[0];", 3, 1, "not included"),
    (Q + "foo q[0];", 5, 1, "found 'foo', expected a gate that is defined"), (Q + "  cx q[0];", 5, 3, "found 1 qubit for gate 'cx', expected 2"),
    (Q + "h q[0],q[1];", 5, 1, "found 2 qubits for gate 'h', expected 1"), (Q + "rx q[0];", 5, 1, "found 0 parameters for gate 'rx', expected 1"),
    (Q + "u3(1,2) q[0];", 5, 1, "found 2 parameters for gate 'u3', expected 3"), (Q + "h q[3];", 5, 5, "found index 3, expected less than 3"),
    (Q + "cx q[1],q[1];", 5, 9, "found qubit q[1] twice"), (Q + "cx q,q;", 5, 6, "twice"), (Q + "h q[0]\nx q[1];", 6, 1, "found 'x', expected ';'"),
    (Q + "h r[0];", 5, 3, "'r', which is not declared"), (Q + "h c[0];", 5, 3, "which is classical"), (Q + "measure q[0] -> q[1];", 5, 17, "which is quantum"),
    (Q + "measure q -> c;", 5, 14, "found 2 bits for 3 qubits"), (Q + "measure q[0] c[0];", 5, 14, "expected '->'"),
    (Q + "qreg q[2];", 5, 6, "declared already"), (Q + "qreg r[0];", 5, 8, "size 0"), (Q + "qreg r[46];", 5, 8, "at most 48"), (Q + "qreg r[2;", 5, 9, "expected ']'"),
    (Q + "rx(1/0) q[0];", 5, 4, "infinite"), (Q + "rx(ln(-1)) q[0];", 5, 4, "not a number"), (Q + "rx(2*) q[0];", 5, 6, "expected an expression"),
    (Q + "rx((1+2 q[0];", 5, 9, "expected ')' or an operator"), (Q + "rx(foo) q[0];", 5, 4, "expected a number, 'pi' or a function"),
    (Q + "rx(" + "(" * 200 + "1" + ")" * 200 + ") q[0];", 5, 54, "nested deeper"), (Q + "if(c==1) x q[0];", 5, 1, "not supported"),
    (Q + "opaque magic a;", 5, 1, "opaque"), (Q + "h q[0]; @", 5, 9, "found '@'"), (Q + "h q[0]; \xe9", 5, 9, "found '\\xc3'"),
    (Q + "gate g a { h b; }", 5, 14, "expected an argument of this gate"), (Q + "gate g a { g a; }", 5, 12, "found 'g'"), (Q + "gate g a { h a;", 5, 16, "expected '}'"),
    (Q + "gate g a,a { h a; }", 5, 10, "found 'a' twice"), (Q + "gate g a { }\ngate g b { }", 6, 6, "defined already"), (Q + "gate U a { }", 5, 6, "defined already"),
    (Q + "gate g a,b { cx a,a; }", 5, 19, "twice"), (Q + "gate g(x) a { rx(1/x) a; }\ng(0) q[0];", 5, 18, "infinite"), (Q + "h q[-1];", 5, 5, "expected an index"),
    (Q + "qreg r[2];\ncx q,r;", 6, 6, "of size 2, expected size 3"), (Q + "h", 5, 2, "expected a quantum register"), (Q + "reset c;", 5, 7, "which is classical"),
    (Q + "barrier q[9];", 5, 11, "index 9"), (Q + "creg c2[5000];", 5, 9, "at most 4096"), (Q + "1.5;", 5, 1, "expected a statement"),
]


def test_errors(program, scratch):
    path = os.path.join(scratch, "bad.qasm")
    for text, line, column, words in ERRORS:
        with open(path, "w") as file:
            file.write(text)
        result = run(program, path)
        where = f"{path}:{line}:{column}: "
        good = result.returncode == 1 and where in result.stderr and words in result.stderr and re.search(r"found|expected", result.stderr)
        check(good, f"error of {text[len(Q):] if text.startswith(Q) else text!r}: wanted {line}:{column} '{words}', got {result.returncode} {result.stderr.strip()!r}")
    result = run(program, os.path.join(scratch, "absent.qasm"))
    check(result.returncode == 1 and "cannot be read" in result.stderr, "absent file")
    return len(ERRORS) + 1


# ---- properties ----

def test_fusion(program, scratch):
    path = os.path.join(scratch, "fuse.qasm")
    for seed in range(40):
        n = 1 + seed % 20
        with open(path, "w") as file:
            file.write(random_circuit(n, 120, 1000 + seed))
        plain = np.array(amplitudes(program, path, scratch, "--no-fuse"))
        for options in ((), ("--fuse-qubits", "2"), ("--partner-qubits", "2"), ("--threads", "1"), ("--threads", "5")):
            fused = np.array(amplitudes(program, path, scratch, *options))
            worst = np.abs(plain - fused).max()
            check(worst < TOLERANCE, f"fusion {options}: {n} qubits, seed {seed}: off by {worst:.3g}")
            if options == ():
                first = fused
            if options[:1] == ("--threads",):
                check(first.tobytes() == fused.tobytes(), f"{options}: {n} qubits, seed {seed}: not bit-identical")


def test_chunked(program, scratch, files):
    """Gates by chunk against whole sweeps: groups of chunks, qubits that trade places, controls outside, measurements between."""
    path = os.path.join(scratch, "chunked.qasm")
    circuits = [(f"qft {n}", qft(n)) for n in (3, 17, 20)] + [("ghz 21", ghz(21)), ("adder 9", adder(9))]
    circuits += [(f"random {n}", random_circuit(n, 200, 3000 + n)) for n in (1, 5, 16, 18, 19, 20, 21)]
    # One gate alone on the highest qubit, with a control on the next.
    circuits += [("pairs", HEAD + "qreg q[20];\nh q;\nt q[19];\ncu3(0.3,0.2,0.1) q[18],q[19];\n"), ("one", HEAD + "qreg q[19];\nu3(1,2,3) q[18];\n")]
    for name, text in circuits:
        with open(path, "w") as file:
            file.write(text)
        compare_chunked(program, name, path, scratch)
        if not name.startswith("random 1") or name == "random 19":  # what fits into no group comes inside of chunks
            compare_chunked(program, name, path, scratch, "--group-qubits", "0")
            compare_chunked(program, name, path, scratch, "--group-qubits", "1")
    for file in files:
        with open(file) as text:
            need = 16 << Circuit(text.read()).size
        if need <= 256 << 20:  # larger ones take minutes
            compare_chunked(program, os.path.basename(file), file, scratch)
    with open(path, "w") as file:
        file.write(HEAD + "qreg q[19];\ncreg c[2];\nh q[18];\ncx q[18],q[0];\nmeasure q[18] -> c[0];\nh q[18];\nreset q[18];\nmeasure q[0] -> c[1];\n")
    counts = dict(line.split() for line in run(program, "--chunked", "--budget", "64M", "--shots", "40", path).stdout.splitlines())
    check(set(counts) == {"00", "11"}, f"collapse by chunk {counts}")
    result = run(program, "--chunked", "--tolerance", "0.1", path)
    check(result.returncode == 1 and "--tolerance" in result.stderr, "--chunked with --tolerance")


def compare_chunked(program, name, path, scratch, *options):
    whole = np.array(amplitudes(program, path, scratch, "--memory", "qmem", "--budget", "64M"))
    chunked = np.array(amplitudes(program, path, scratch, "--chunked", "--budget", "64M", *options))
    worst = np.abs(whole - chunked).max()
    check(worst < TOLERANCE, f"{name} by chunk {options}: off by {worst:.3g}")


def test_measurement(program, scratch):
    path = os.path.join(scratch, "measure.qasm")
    with open(path, "w") as file:
        file.write(HEAD + "qreg q[2];\ncreg c[2];\nry(2*pi/3) q[0];\ncx q[0],q[1];\nmeasure q -> c;\n")
    counts = dict(line.split() for line in run(program, "--shots", "10000", path).stdout.splitlines())
    check(set(counts) == {"00", "11"} and abs(int(counts["11"]) - 7500) < 6 * math.sqrt(10000 * 0.75 * 0.25), f"samples {counts}")
    with open(path, "w") as file:  # what is measured in the middle must agree with what is measured after it
        file.write(HEAD + "qreg q[3];\ncreg c[3];\nh q[0];\ncx q[0],q[1];\nmeasure q[0] -> c[0];\ncx q[0],q[2];\nh q[0];\nreset q[0];\nmeasure q[1] -> c[1];\nmeasure q[2] -> c[2];\n")
    counts = dict(line.split() for line in run(program, "--shots", "400", path).stdout.splitlines())
    check(set(counts) == {"000", "111"} and abs(int(counts["111"]) - 200) < 60, f"collapse {counts}")
    check(run(program, "--seed", "7", path).stdout == run(program, "--seed", "7", path).stdout, "same seed, other outcome")
    check(run(program, "--shots", "0", path).stdout == "", "no shots, yet output")


def main():
    program, given = sys.argv[1], sys.argv[2:]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory(dir=os.path.join(root, "target") if os.path.isdir(os.path.join(root, "target")) else None) as scratch:
        files = given or sorted(glob.glob(os.path.join(root, "..", "shared", "data", "circuits", "*.qasm")))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        worst, count = 0.0, 0
        if not given:
            errors = test_errors(program, scratch)
            test_fusion(program, scratch)
            test_measurement(program, scratch)
            test_chunked(program, scratch, files)
            print(f"{errors} error messages, fusion on 40 circuits, measurement, chunks: {len(failures)} failures", flush=True)
            path = os.path.join(scratch, "circuit.qasm")
            for name, text in own_circuits():
                with open(path, "w") as file:
                    file.write(text)
                worst, count = max(worst, compare(program, name, path, scratch)), count + 1
            print(f"{count} circuits of its own against qulacs: worst amplitude {worst:.2g}, {len(failures)} failures", flush=True)
        for path in files:
            with open(path) as file:
                need = 16 << Circuit(file.read()).size
            if 4 * need > memory:  # our state, theirs, its copy for numpy, the dump in the page cache
                print(f"{os.path.basename(path)}: skipped, needs {4 * need >> 30} GiB")
                continue
            if not given and need > 1 << 30:
                print(f"{os.path.basename(path)}: skipped, takes minutes; given by name it runs")
                continue
            print(f"{os.path.basename(path)}: worst amplitude {compare(program, path, path, scratch):.2g}", flush=True)
    print("FAILED" if failures else "ok")
    sys.exit(1 if failures else 0)


main()
