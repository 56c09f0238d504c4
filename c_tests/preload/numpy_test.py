"""An array larger than the budget, as NumPy programs use it: sorted, summed, saved with np.save and loaded back; then read by a
multiprocessing pool (fork). Prints checksums, the same with and without qmem.  numpy_test.py MEBIBYTES DIRECTORY"""
import hashlib
import multiprocessing
import sys
import tempfile

import numpy

mebibytes, directory = int(sys.argv[1]), sys.argv[2]
count = (mebibytes << 20) // 8
step = 1 << 18
array = numpy.empty(count, dtype=numpy.uint64)


def digest(values):
    hasher = hashlib.sha256()
    for first in range(0, len(values), step):
        hasher.update(values[first:first + step].tobytes())
    return hasher.hexdigest()


def part(first):
    return int(array[first:first + step].sum(dtype=numpy.uint64))


def main():
    generator = numpy.random.default_rng(7)
    for first in range(0, count, step):
        array[first:first + step] = generator.integers(0, 1 << 63, min(step, count - first), dtype=numpy.uint64)
    print("made", digest(array), flush=True)
    array.sort()
    print("sorted", digest(array), int(array.sum(dtype=numpy.uint64)), bool((array[step::step] >= array[:-step:step]).all()), flush=True)
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".npy") as file:
        numpy.save(file, array)
        file.flush()
        loaded = numpy.load(file.name)
    print("loaded", digest(loaded), flush=True)
    del loaded
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(part, range(0, count, step))
    print("pool", sum(sums) % (1 << 64), digest(array), flush=True)


if __name__ == "__main__":
    main()
