/* demo_circuit.c: see demo_circuit.h. The physics: an XXZ chain starts as a domain wall, |1...10...0>, and melts. As long as the
   magnetisation is conserved most amplitudes are exactly zero and the state compresses well. Then a transverse field is switched on;
   after a few steps every amplitude is different from every other, and no lossless code gains anything. */
#include "demo_circuit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void write_layer(FILE *file, unsigned qubits, unsigned first) {
  for (unsigned q = first; q + 1 < qubits; q += 2) fprintf(file, "bond(0.37*pi,0.21*pi) q[%u],q[%u];\n", q, q + 1);
}

static void write_field(FILE *file, unsigned qubits) {
  for (unsigned q = 0; q < qubits; q++) fprintf(file, "rx(pi/%u) q[%u];\n", 5 + q % 3, q);
}

bool demo_circuit_write(const char *path, unsigned qubits, unsigned free_steps, unsigned field_steps, char *error, size_t cap) {
  errno = 0;
  FILE *file = fopen(path, "w");
  if (file) {
    fprintf(file, "// A domain wall melts in an XXZ chain of %u spins, then a transverse field is switched on.\n", qubits);
    fprintf(file, "OPENQASM 2.0;\ninclude \"qelib1.inc\";\n");
    fprintf(file, "// One Trotter step of a bond: exp(-i theta (XX+YY)/4) exp(-i phi ZZ/2), exactly conserving the number of ones.\n");
    fprintf(file, "gate bond(theta,phi) a,b { cx a,b; crx(theta) b,a; cx a,b; rzz(phi) a,b; }\n");
    fprintf(file, "qreg q[%u];\n", qubits);
    for (unsigned q = 0; q < qubits / 2; q++) fprintf(file, "x q[%u];\n", q);
    for (unsigned step = 0; step < free_steps + field_steps; step++) {
      fprintf(file, "// step %u\n", step + 1);
      write_layer(file, qubits, qubits / 2 % 2 ? 0 : 1); /* first the layer with the bond across the wall */
      write_layer(file, qubits, qubits / 2 % 2 ? 1 : 0);
      if (step >= free_steps) write_field(file, qubits);
    }
  }
  bool good = file && !ferror(file);
  if (file && fclose(file) != 0) good = false;
  if (!good) snprintf(error, cap, "%s: cannot be written: %s", path, strerror(errno));
  return good;
}
