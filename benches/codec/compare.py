"""qmem's compressors beside zfp, SZ3, Blosc2 and pco: ratio at a given infidelity, and bytes per second in and out on one core.

Every peer is as its Python wheel comes, one thread, and is given the whole state. Peers that bound another error than L2 (zfp, SZ3)
have their bound searched for the largest ratio that keeps to the infidelity; Blosc2 and pco get numbers that were quantised to the
largest step that does, and the time of that is theirs, as ours is ours. The infidelity is measured for everyone, from what came back.
Times are the least of several runs, in seconds of the thread's own processor time, which other programs disturb least.
"""
import argparse
import ctypes
import json
import math
import os
import sys
import time

import numpy

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.dirname(HERE))
import report  # noqa: E402
import states  # noqa: E402

BISECTIONS = 18


class Config(ctypes.Structure):
    _fields_ = [("algorithm", ctypes.c_char_p), ("level", ctypes.c_int), ("chunk_size", ctypes.c_size_t), ("threads", ctypes.c_uint32),
                ("element", ctypes.c_int), ("tolerance", ctypes.c_double), ("quality", ctypes.c_int), ("width", ctypes.c_uint32),
                ("height", ctypes.c_uint32), ("components", ctypes.c_uint32), ("reserved", ctypes.c_uint64 * 4)]


C128 = 2


class Qmem:
    """qmem's compressors through the C API, checksums included."""

    def __init__(self, library):
        self.library = ctypes.CDLL(library)
        self.library.qmem_compressor_create.restype = ctypes.c_void_p
        self.library.qmem_compress_bound.restype = ctypes.c_size_t

    def codec(self, algorithm, level, tolerance, chunk_size):
        config = Config(algorithm=algorithm, level=level, threads=1, element=C128, tolerance=tolerance, chunk_size=chunk_size)
        compressor = ctypes.c_void_p(self.library.qmem_compressor_create(ctypes.byref(config)))
        if not compressor:
            raise RuntimeError(self.why())
        written = ctypes.c_size_t()

        def into(call, source, target):
            status = call(compressor, ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes),
                          ctypes.c_void_p(target.ctypes.data), ctypes.c_size_t(target.nbytes), ctypes.byref(written))
            if status:
                raise RuntimeError(self.why())
            return target[:written.value]

        def encode(state):
            if encode.room is None:
                bound = self.library.qmem_compress_bound(compressor, ctypes.c_size_t(state.nbytes))
                encode.room, decode.room = numpy.zeros(bound, numpy.uint8), numpy.zeros(state.nbytes, numpy.uint8)
            return into(self.library.qmem_compress, state, encode.room)

        def decode(packed):
            return into(self.library.qmem_decompress, packed, decode.room).view(numpy.complex128)

        encode.room = None
        return encode, decode

    def why(self):
        text = ctypes.create_string_buffer(512)
        self.library.qmem_last_error(text, ctypes.c_size_t(512))
        return text.value.decode()


def infidelity(state, other):
    """1 - F; from the difference where it is too small to be seen in the product."""
    overlap = abs(numpy.vdot(state, other)) ** 2 / (numpy.vdot(state, state).real * numpy.vdot(other, other).real)
    distance = numpy.linalg.norm(state - other) ** 2 / numpy.vdot(state, state).real
    return min(max(1 - overlap, 0.0), distance) if distance < 1e-12 else max(1 - overlap, 0.0)


def clock(call, repetitions):
    best = math.inf
    for _ in range(repetitions):
        start = time.thread_time()
        result = call()
        best = min(best, time.thread_time() - start)
    return best, result


def measure(state, codec, repetitions):
    encode, decode = codec
    seconds_in, packed = clock(lambda: encode(state), repetitions)
    size = packed.nbytes if hasattr(packed, "nbytes") else len(packed)
    packed = numpy.array(packed) if isinstance(packed, numpy.ndarray) else packed
    seconds_out, back = clock(lambda: decode(packed), repetitions)
    return {"ratio": state.nbytes / size, "in": state.nbytes / seconds_in / 1e9, "out": state.nbytes / seconds_out / 1e9,
            "infidelity": float(infidelity(state, back))}


def search(state, make, low, high, goal):
    """The largest bound between low and high that keeps to the goal, by bisection of its logarithm."""
    best = low
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        encode, decode = make(middle)
        if infidelity(state, decode(encode(state))) <= goal:
            best = low = middle
        else:
            high = middle
    return make(best)


def zfp(bound):
    import zfpy
    return (lambda state: zfpy.compress_numpy(state.view(numpy.float64), tolerance=bound),
            lambda packed: zfpy.decompress_numpy(packed).view(numpy.complex128))


def sz3(bound):
    import pysz
    config = pysz.szConfig()
    config.errorBoundMode = pysz.szErrorBoundMode.ABS
    config.absErrorBound = bound

    def encode(state):
        encode.size = 2 * state.size
        return pysz.sz.compress(state.view(numpy.float64), config)[0]

    return encode, lambda packed: pysz.sz.decompress(packed, numpy.float64, (encode.size,))[0].view(numpy.complex128)


def quantised(pack, unpack):
    """A lossless peer on numbers quantised to a step: 32-bit integers."""
    def make(step):
        return (lambda state: pack(numpy.rint(state.view(numpy.float64) * (1 / step)).astype(numpy.int32)),
                lambda packed: (unpack(packed) * step).view(numpy.complex128))
    return make


def blosc2():
    import blosc2 as b
    b.set_nthreads(1)
    options = {"typesize": 4, "clevel": 5, "codec": b.Codec.ZSTD, "filter": b.Filter.BITSHUFFLE}
    return quantised(lambda codes: b.compress(codes, **options), lambda packed: numpy.frombuffer(b.decompress(packed), numpy.int32))


def pco():
    from pcodec import ChunkConfig, standalone as s
    return quantised(lambda codes: s.simple_compress(codes, ChunkConfig()), s.simple_decompress)


def contenders(qmem, goal):
    """Name, and what gives encoder and decoder for a state."""
    tolerance = math.sqrt(goal)
    yield "qmem amplitude, fast", lambda state: qmem.codec(b"amplitude", 1, tolerance, 0)
    yield "qmem amplitude, fast, 2 MiB", lambda state: qmem.codec(b"amplitude", 1, tolerance, 2 << 20)
    yield "qmem amplitude, dense", lambda state: qmem.codec(b"amplitude", 2, tolerance, 0)
    yield "qmem amplitude, dense, 2 MiB", lambda state: qmem.codec(b"amplitude", 2, tolerance, 2 << 20)
    for name, module, make in [("zfp", "zfpy", lambda: zfp), ("SZ3", "pysz", lambda: sz3), ("quantised, Blosc2 bitshuffle+zstd", "blosc2", blosc2),
                               ("quantised, pco", "pcodec", pco)]:
        try:
            __import__(module)
        except ImportError as why:
            print(f"left out: {name}: {why}", file=sys.stderr)
            continue
        yield name, lambda state, make=make: search(state, make(), 1e-3 * tolerance / math.sqrt(state.size), 1e3 * tolerance / math.sqrt(state.size), goal)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--qubits", type=int, default=22)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--states", default=",".join(states.STATES))
    parser.add_argument("--library", default=os.path.join(ROOT, "target", "release", "libqmem.so.0"))
    options = parser.parse_args()
    qmem = Qmem(options.library)
    directory = os.path.join(ROOT, "target", "bench")
    results, faults = [], 0
    for name in options.states.split(","):
        state = states.load(name, options.qubits, os.path.join(directory, "states"))
        for goal in (1e-4, 1e-6):
            rows = []
            for contender, make in contenders(qmem, goal):
                try:
                    got = measure(state, make(state), options.repetitions)
                except Exception as why:  # a peer that cannot take a state is left out, not the table
                    print(f"left out: {contender} on {name}: {why}", file=sys.stderr)
                    faults += contender.startswith("qmem")
                    continue
                faults += contender.startswith("qmem") and got["infidelity"] > goal
                results.append({"state": name, "goal": goal, "contender": contender, **got})
                rows.append([contender, f"{got['ratio']:.2f}", f"{got['in']:.2f}", f"{got['out']:.2f}", f"{got['infidelity']:.1e}"])
            print(report.table(f"{name}, {options.qubits} qubits, infidelity at most {goal:g}", ["", "ratio", "GB/s in", "GB/s out", "1-F"], rows), flush=True)
    with open(os.path.join(directory, "codec.json"), "w", encoding="utf-8") as out:
        json.dump({"options": vars(options), "results": results}, out, indent=1)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
