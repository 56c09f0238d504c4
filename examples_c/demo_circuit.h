/* demo_circuit.h: the circuit that the demo runs. Called by main_demo.c alone. */
#ifndef DEMO_CIRCUIT_H
#define DEMO_CIRCUIT_H
#include <stdbool.h>
#include <stddef.h>

/* Writes the quench of a spin chain of `qubits` as OpenQASM 2: `free_steps` Trotter steps that conserve the magnetisation, then
   `field_steps` in a transverse field, which conserve nothing. False with words in `error`. */
bool demo_circuit_write(const char *path, unsigned qubits, unsigned free_steps, unsigned field_steps, char *error, size_t cap);
#endif
