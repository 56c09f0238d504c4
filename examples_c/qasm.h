/* qasm.h: OpenQASM 2 text to circuit_t. Called by the mains. Every error names file, line, column, what was found and expected. */
#ifndef QASM_H
#define QASM_H
#include "circuit.h"

/* False: `error` holds "file:line:column: ..." and the circuit is empty. */
bool qasm_load(const char *path, circuit_t *circuit, char *error, size_t cap);
bool qasm_parse(const char *name, const char *text, size_t length, circuit_t *circuit, char *error, size_t cap);
#endif
