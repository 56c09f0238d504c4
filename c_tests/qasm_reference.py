"""An independent reader of OpenQASM 2 and its standard library down to U and CX, to qulacs. Used by test_qasm.py; shares nothing with the C code."""
import cmath
import math
import re

import numpy as np

# qelib1.inc as the OpenQASM 2 paper and its later versions define it.
LIBRARY = """
gate u3(theta,phi,lambda) q { U(theta,phi,lambda) q; }
gate u2(phi,lambda) q { U(pi/2,phi,lambda) q; }
gate u1(lambda) q { U(0,0,lambda) q; }
gate cx c,t { CX c,t; }
gate id a { U(0,0,0) a; }
gate u0(gamma) q { U(0,0,0) q; }
gate u(theta,phi,lambda) q { U(theta,phi,lambda) q; }
gate p(phi) q { U(0,0,phi) q; }
gate x a { u3(pi,0,pi) a; }
gate y a { u3(pi,pi/2,pi/2) a; }
gate z a { u1(pi) a; }
gate h a { u2(0,pi) a; }
gate s a { u1(pi/2) a; }
gate sdg a { u1(-pi/2) a; }
gate t a { u1(pi/4) a; }
gate tdg a { u1(-pi/4) a; }
gate rx(theta) a { u3(theta, -pi/2,pi/2) a; }
gate ry(theta) a { u3(theta,0,0) a; }
gate rz(phi) a { u1(phi) a; }
gate sx a { sdg a; h a; sdg a; }
gate sxdg a { s a; h a; s a; }
gate cz a,b { h b; cx a,b; h b; }
gate cy a,b { sdg b; cx a,b; s b; }
gate swap a,b { cx a,b; cx b,a; cx a,b; }
gate ch a,b { h b; sdg b; cx a,b; h b; t b; cx a,b; t b; h b; s b; x b; s a; }
gate ccx a,b,c { h c; cx b,c; tdg c; cx a,c; t c; cx b,c; tdg c; cx a,c; t b; t c; h c; cx a,b; t a; tdg b; cx a,b; }
gate cswap a,b,c { cx c,b; ccx a,b,c; cx c,b; }
gate crx(lambda) a,b { u1(pi/2) b; cx a,b; u3(-lambda/2,0,0) b; cx a,b; u3(lambda/2,-pi/2,0) b; }
gate cry(lambda) a,b { ry(lambda/2) b; cx a,b; ry(-lambda/2) b; cx a,b; }
gate crz(lambda) a,b { rz(lambda/2) b; cx a,b; rz(-lambda/2) b; cx a,b; }
gate cu1(lambda) a,b { u1(lambda/2) a; cx a,b; u1(-lambda/2) b; cx a,b; u1(lambda/2) b; }
gate cp(lambda) a,b { p(lambda/2) a; cx a,b; p(-lambda/2) b; cx a,b; p(lambda/2) b; }
gate cu3(theta,phi,lambda) c,t { u1((lambda+phi)/2) c; u1((lambda-phi)/2) t; cx c,t; u3(-theta/2,0,-(phi+lambda)/2) t; cx c,t; u3(theta/2,phi,0) t; }
gate cu(theta,phi,lambda,gamma) c,t { p(gamma) c; p((lambda+phi)/2) c; p((lambda-phi)/2) t; cx c,t; u(-theta/2,0,-(phi+lambda)/2) t; cx c,t; u(theta/2,phi,0) t; }
gate csx a,b { h b; cu1(pi/2) a,b; h b; }
gate rxx(theta) a,b { u3(pi/2,theta,0) a; h b; cx a,b; u1(-theta) b; cx a,b; h b; u2(-pi,pi-theta) a; }
gate rzz(theta) a,b { cx a,b; u1(theta) b; cx a,b; }
gate rccx a,b,c { u2(0,pi) c; u1(pi/4) c; cx b,c; u1(-pi/4) c; cx a,c; u1(pi/4) c; cx b,c; u1(-pi/4) c; u2(0,pi) c; }
gate rc3x a,b,c,d { u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d; cx a,d; u1(pi/4) d; cx b,d; u1(-pi/4) d; cx a,d; u1(pi/4) d; cx b,d; u1(-pi/4) d; u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d; }
gate c3x a,b,c,d { h d; p(pi/8) a; p(pi/8) b; p(pi/8) c; p(pi/8) d; cx a,b; p(-pi/8) b; cx a,b; cx b,c; p(-pi/8) c; cx a,c; p(pi/8) c; cx b,c; p(-pi/8) c; cx a,c; cx c,d; p(-pi/8) d; cx b,d; p(pi/8) d; cx c,d; p(-pi/8) d; cx a,d; p(pi/8) d; cx c,d; p(-pi/8) d; cx b,d; p(pi/8) d; cx c,d; p(-pi/8) d; cx a,d; h d; }
gate c3sqrtx a,b,c,d { h d; cu1(pi/8) a,d; h d; cx a,b; h d; cu1(-pi/8) b,d; h d; cx a,b; h d; cu1(pi/8) b,d; h d; cx b,c; h d; cu1(-pi/8) c,d; h d; cx a,c; h d; cu1(pi/8) c,d; h d; cx b,c; h d; cu1(-pi/8) c,d; h d; cx a,c; h d; cu1(pi/8) c,d; h d; }
gate c4x a,b,c,d,e { h e; cu1(pi/2) d,e; h e; c3x a,b,c,d; h e; cu1(-pi/2) d,e; h e; c3x a,b,c,d; c3sqrtx a,b,c,e; }
"""
FUNCTIONS = {"pi": math.pi, "sin": math.sin, "cos": math.cos, "tan": math.tan, "exp": math.exp, "ln": math.log, "sqrt": math.sqrt}


def matrix_of_u(theta, phi, lam):
    c, s = math.cos(theta / 2), math.sin(theta / 2)
    return np.array([[c, -s * cmath.exp(1j * lam)], [s * cmath.exp(1j * phi), c * cmath.exp(1j * (phi + lam))]])


MATRIX_OF_CX = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=complex)  # bit 0 is the control


def apply_small(state, matrix, bits):
    """matrix on `bits` of the row index of a 2^n x m array; matrix bit j is bits[j]."""
    n = int(math.log2(state.shape[0]))
    k = len(bits)
    tensor = state.reshape([2] * n + [-1])
    axes = [n - 1 - b for b in reversed(bits)]
    moved = np.moveaxis(tensor, axes, range(k))
    shape = moved.shape
    moved = (matrix @ moved.reshape(2**k, -1)).reshape(shape)
    return np.moveaxis(moved, range(k), axes).reshape(state.shape)


class Circuit:
    def __init__(self, text):
        self.definitions, self.registers, self.size, self.gates = {}, {}, 0, []
        self.read(LIBRARY)
        self.read(text)

    def read(self, text):
        text = re.sub(r"//[^\n]*", "", text)
        for match in re.finditer(r"\s*(gate\b[^{]*\{[^}]*\}|[^;{}]+;)", text):
            self.statement(match.group(1).strip().rstrip(";").strip())

    def statement(self, line):
        word = re.match(r"\w+", line).group(0)
        if word == "gate":
            head, body = line[:-1].split("{")
            name, params, args = re.match(r"gate\s+(\w+)\s*(?:\(([^)]*)\))?\s*(.*)", head.strip(), re.S).groups()
            calls = [self.call(c) for c in body.split(";") if c.strip() and not c.strip().startswith("barrier")]
            self.definitions[name] = ([p.strip() for p in (params or "").split(",") if p.strip()], [a.strip() for a in args.split(",")], calls)
        elif word == "qreg":
            name, size = re.match(r"qreg\s+(\w+)\s*\[(\d+)\]", line).groups()
            self.registers[name] = (self.size, int(size))
            self.size += int(size)
        elif word not in ("OPENQASM", "include", "creg", "barrier", "measure"):
            name, params, args = self.call(line)
            values = [self.value(p, {}) for p in params]
            lists = [self.argument(a) for a in args]
            for i in range(max(map(len, lists))):
                self.gates.append((name, tuple(values), [l[i if len(l) > 1 else 0] for l in lists]))

    def argument(self, text):
        name, index = re.match(r"(\w+)\s*(?:\[(\d+)\])?", text).groups()
        first, size = self.registers[name]
        return [first + int(index)] if index is not None else list(range(first, first + size))

    @staticmethod
    def call(text):
        name, rest = re.match(r"\s*(\w+)\s*(.*)", text.strip(), re.S).groups()
        params = []
        if rest.startswith("("):
            depth, start = 0, 1
            for i, c in enumerate(rest):
                depth += (c == "(") - (c == ")")
                if (c == "," and depth == 1) or depth == 0:
                    params.append(rest[start:i])
                    start = i + 1
                if depth == 0:
                    rest = rest[i + 1:]
                    break
        return name, [p for p in params if p.strip()], [a.strip() for a in rest.split(",")]

    @staticmethod
    def value(text, names):
        text = re.sub(r"\blambda\b", "lambda_", text).replace("^", "**")
        return float(eval(text, {"__builtins__": {}}, {**FUNCTIONS, **{k + "_" if k == "lambda" else k: v for k, v in names.items()}}))

    def matrix(self, name, values):
        """The gate's matrix by expanding its definition; index bit j is argument j."""
        if name == "U":
            return matrix_of_u(*values)
        if name == "CX":
            return MATRIX_OF_CX
        params, args, calls = self.definitions[name]
        names = dict(zip(params, values))
        result = np.eye(2 ** len(args), dtype=complex)
        for inner, inner_params, inner_args in calls:
            small = self.matrix(inner, tuple(self.value(p, names) for p in inner_params))
            result = apply_small(result, small, [args.index(a) for a in inner_args])
        return result

    def state(self):
        """All amplitudes by qulacs."""
        import qulacs
        state, cache = qulacs.QuantumState(self.size), {}
        for name, values, qubits in self.gates:
            if (name, values) not in cache:
                cache[name, values] = self.matrix(name, values)
            qulacs.gate.DenseMatrix(list(qubits), cache[name, values]).update_quantum_state(state)
        return state.get_vector()
