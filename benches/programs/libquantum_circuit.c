/* A circuit in libquantum (complex float, a list of basis states behind a hash table).  libquantum_circuit QUBITS
   Hadamard on every qubit, then phases and flips, and the digest of every state and amplitude; one JSON line, as circuit.py. */
#include <complex.h>
#include <quantum.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static uint64_t digest(uint64_t hash, const void *bytes, size_t size) { /* FNV-1a over words */
  const uint64_t *words = bytes;
  for (size_t i = 0; i < size / 8; i++) hash = (hash ^ words[i]) * 0x100000001B3u;
  return hash;
}

int main(int count, char **arguments) {
  int qubits = count > 1 ? atoi(arguments[1]) : 20;
  double began = now();
  struct rusage usage;
  quantum_reg reg = quantum_new_qureg(0, qubits);
  for (int q = 0; q < qubits; q++) quantum_hadamard(q, &reg);
  for (int q = 0; q + 1 < qubits; q++) quantum_cond_phase(q + 1, q, &reg);
  for (int q = 0; q < qubits; q += 2) quantum_r_z(q, 0.1f * (float)(q + 1), &reg);
  for (int q = 0; q + 1 < qubits; q += 3) quantum_cnot(q, q + 1, &reg);
  uint64_t hash = digest(digest(0xCBF29CE484222325u, reg.amplitude, (size_t)reg.size * sizeof *reg.amplitude), reg.state,
                         (size_t)reg.size * sizeof *reg.state);
  getrusage(RUSAGE_SELF, &usage);
  printf("{\"amplitudes\": %d, \"digest\": \"%016llx\", \"seconds\": %.3f, \"peak_rss\": %lld}\n", reg.size, (unsigned long long)hash,
         now() - began, (long long)usage.ru_maxrss << 10);
  quantum_delete_qureg(&reg);
  return 0;
}
