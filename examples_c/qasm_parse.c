/* qasm_parse.c: the statements of OpenQASM 2: registers, gate definitions, gate calls with broadcast, measure, reset, barrier.
   Called by the mains through qasm.h. Gate definitions are expanded where they are called. May not touch the state. */
#include "qasm.h"
#include "qasm_parser.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A register or one element of it, as a statement names it. */
typedef struct {
  const circuit_register_t *reg;
  uint32_t first, size;     /* size 1 for one element */
  token_t token;
} argument_t;

static void expect(parser_t *parser, const char *symbol, const char *expected) {
  if (!token_is(&parser->token, symbol)) fail_found(parser, expected);
  lex_next(parser);
}

static bool accept(parser_t *parser, const char *symbol) {
  if (!token_is(&parser->token, symbol)) return false;
  lex_next(parser);
  return true;
}

static void read_name(parser_t *parser, char name[64], const char *expected) {
  const token_t *token = &parser->token;
  if (token->kind != TOKEN_NAME) fail_found(parser, expected);
  if (token->length > 63) fail_at(parser, token->line, token->column, "found a name of %zu characters, expected at most 63", token->length);
  memcpy(name, token->start, token->length);
  name[token->length] = '\0';
  lex_next(parser);
}

static const circuit_register_t *find_register(const list_t *list, const char *name) {
  for (size_t i = 0; i < list->count; i++)
    if (strcmp(LIST(*list, circuit_register_t)[i].name, name) == 0) return &LIST(*list, circuit_register_t)[i];
  return NULL;
}

static const definition_t *find_definition(const parser_t *parser, const char *name) {
  for (size_t i = parser->definitions.count; i-- > 0;)
    if (strcmp(LIST(parser->definitions, definition_t)[i].name, name) == 0) return &LIST(parser->definitions, definition_t)[i];
  return NULL;
}

/* ---- registers ---- */

static void read_register(parser_t *parser, bool quantum) {
  lex_next(parser);
  token_t at = parser->token;
  circuit_register_t reg = {0};
  read_name(parser, reg.name, "a register name");
  if (find_register(&parser->qregs, reg.name) || find_register(&parser->cregs, reg.name))
    fail_at(parser, at.line, at.column, "found register '%s', which is declared already, expected a new name", reg.name);
  expect(parser, "[", "'['");
  at = parser->token;
  if (at.kind != TOKEN_INTEGER) fail_found(parser, "the register's size");
  uint32_t *total = quantum ? &parser->circuit->num_qubits : &parser->circuit->num_bits;
  uint32_t most = (quantum ? CIRCUIT_MAX_QUBITS : CIRCUIT_MAX_BITS) - *total;
  if (at.value < 1) fail_at(parser, at.line, at.column, "found a register of size 0, expected at least 1");
  if (at.value > most)
    fail_at(parser, at.line, at.column, "found a register of %.0f %s beside %u, expected at most %u in all", at.value,
            quantum ? "qubits" : "bits", *total, *total + most);
  reg.first = *total;
  reg.size = (uint32_t)at.value;
  *total += reg.size;
  lex_next(parser);
  expect(parser, "]", "']'");
  expect(parser, ";", "';'");
  list_add(parser, quantum ? &parser->qregs : &parser->cregs, &reg);
}

static void read_argument(parser_t *parser, bool quantum, argument_t *argument) {
  char name[64];
  argument->token = parser->token;
  read_name(parser, name, quantum ? "a quantum register" : "a classical register");
  const list_t *list = quantum ? &parser->qregs : &parser->cregs, *other = quantum ? &parser->cregs : &parser->qregs;
  argument->reg = find_register(list, name);
  const token_t *at = &argument->token;
  if (!argument->reg)
    fail_at(parser, at->line, at->column, "found '%s', which is %s, expected a declared %s register", name,
            find_register(other, name) ? (quantum ? "classical" : "quantum") : "not declared", quantum ? "quantum" : "classical");
  argument->first = argument->reg->first;
  argument->size = argument->reg->size;
  if (!accept(parser, "[")) return;
  token_t index = parser->token;
  if (index.kind != TOKEN_INTEGER) fail_found(parser, "an index");
  if (index.value >= argument->size)
    fail_at(parser, index.line, index.column, "found index %.0f, expected less than %u, the size of '%s'", index.value, argument->size, name);
  argument->first += (uint32_t)index.value;
  argument->size = 1;
  lex_next(parser);
  expect(parser, "]", "']'");
}

/* ---- gates ---- */

static void add_item(parser_t *parser, const item_t *item, const token_t *at) {
  if (!circuit_add(parser->circuit, item))
    fail_at(parser, at->line, at->column, "found more gates than memory or the limit of %u allow", CIRCUIT_MAX_ITEMS);
}

static void apply_call(parser_t *parser, const call_t *call, const double *params, const uint32_t *qubits, const token_t *at) {
  item_t item;
  if (++parser->work > 4ull * CIRCUIT_MAX_ITEMS)
    fail_at(parser, at->line, at->column, "found gate definitions that expand to more than %u calls", 4 * CIRCUIT_MAX_ITEMS);
  if (call->builtin) {
    builtin_make(call->builtin, params, qubits, &item);
    add_item(parser, &item, at);
    return;
  }
  const definition_t *definition = &LIST(parser->definitions, definition_t)[call->definition];
  for (size_t i = 0; i < definition->calls; i++) {
    const call_t *inner = &LIST(parser->calls, call_t)[definition->first_call + i];
    const definition_t *callee = inner->builtin ? NULL : &LIST(parser->definitions, definition_t)[inner->definition];
    uint32_t num_params = callee ? callee->params : inner->builtin->params;
    uint32_t num_qubits = callee ? callee->qubits : (uint32_t)inner->builtin->controls + inner->builtin->targets;
    double inner_params[DEFINITION_NAMES];
    uint32_t inner_qubits[DEFINITION_NAMES];
    for (uint32_t j = 0; j < num_params; j++)
      inner_params[j] = expression_value(parser, &LIST(parser->expressions, expression_t)[inner->first_expression + j], params);
    for (uint32_t j = 0; j < num_qubits; j++) inner_qubits[j] = qubits[LIST(parser->qubits, uint32_t)[inner->first_qubit + j]];
    apply_call(parser, inner, inner_params, inner_qubits, at);
  }
}

/* Finds the gate and reads its parameters; leaves the counts it wants. */
static call_t read_callee(parser_t *parser, token_t *at, char name[64], uint32_t *num_qubits, uint32_t *depth) {
  *at = parser->token;
  read_name(parser, name, "a statement");
  const definition_t *definition = find_definition(parser, name);
  const builtin_t *builtin = definition ? NULL : builtin_find(name);
  if (builtin && !parser->library && strcmp(name, "U") != 0 && strcmp(name, "CX") != 0) builtin = NULL;
  if (!definition && !builtin)
    fail_at(parser, at->line, at->column, "found '%s', expected a gate that is defined%s", name,
            parser->library ? "" : " (qelib1.inc is not included)");
  call_t call = {.builtin = builtin, .first_expression = parser->expressions.count};
  if (definition) call.definition = (size_t)(definition - LIST(parser->definitions, definition_t));
  *num_qubits = definition ? definition->qubits : (uint32_t)builtin->controls + builtin->targets;
  *depth = definition ? definition->depth : 0;
  uint32_t wanted = definition ? definition->params : builtin->params, found = 0;
  if (accept(parser, "(") && !accept(parser, ")")) {
    do {
      expression_read(parser);
      found++;
    } while (accept(parser, ","));
    expect(parser, ")", "')', ',' or an operator");
  }
  if (found != wanted)
    fail_at(parser, at->line, at->column, "found %u parameter%s for gate '%s', expected %u", found, found == 1 ? "" : "s", name, wanted);
  return call;
}

static void check_count(parser_t *parser, const token_t *at, const char *name, uint32_t found, uint32_t wanted) {
  if (found != wanted)
    fail_at(parser, at->line, at->column, "found %u qubit%s for gate '%s', expected %u", found, found == 1 ? "" : "s", name, wanted);
}

static void check_distinct(parser_t *parser, const argument_t *arguments, const uint32_t *qubits, uint32_t count) {
  for (uint32_t i = 1; i < count; i++)
    for (uint32_t j = 0; j < i; j++)
      if (qubits[i] == qubits[j])
        fail_at(parser, arguments[i].token.line, arguments[i].token.column, "found qubit %s[%u] twice, expected different qubits",
                arguments[i].reg->name, qubits[i] - arguments[i].reg->first);
}

static uint32_t broadcast_size(parser_t *parser, const argument_t *arguments, uint32_t count) {
  uint32_t size = 1;
  for (uint32_t i = 0; i < count; i++) {
    if (arguments[i].size != 1 && size != 1 && arguments[i].size != size)
      fail_at(parser, arguments[i].token.line, arguments[i].token.column, "found register '%s' of size %u, expected size %u like the others",
              arguments[i].reg->name, arguments[i].size, size);
    if (arguments[i].size != 1) size = arguments[i].size;
  }
  return size;
}

static void read_gate_call(parser_t *parser) {
  token_t at;
  char name[64];
  uint32_t wanted, depth, found = 0;
  size_t steps = parser->steps.count, expressions = parser->expressions.count;
  call_t call = read_callee(parser, &at, name, &wanted, &depth);
  argument_t arguments[DEFINITION_NAMES];
  do {
    argument_t argument;
    read_argument(parser, true, &argument);
    if (found < DEFINITION_NAMES) arguments[found] = argument;
    found++;
  } while (accept(parser, ","));
  if (!token_is(&parser->token, ";")) fail_found(parser, "';' or ','");
  check_count(parser, &at, name, found, wanted);
  lex_next(parser);
  double params[DEFINITION_NAMES];
  for (size_t i = expressions; i < parser->expressions.count; i++)
    params[i - expressions] = expression_value(parser, &LIST(parser->expressions, expression_t)[i], NULL);
  uint32_t size = broadcast_size(parser, arguments, wanted);
  for (uint32_t i = 0; i < size; i++) {
    uint32_t qubits[DEFINITION_NAMES];
    for (uint32_t j = 0; j < wanted; j++) qubits[j] = arguments[j].first + (arguments[j].size == 1 ? 0 : i);
    check_distinct(parser, arguments, qubits, wanted);
    apply_call(parser, &call, params, qubits, &at);
  }
  parser->steps.count = steps; /* evaluated: a long circuit keeps none of them */
  parser->expressions.count = expressions;
}

/* ---- gate definitions ---- */

static uint32_t read_names(parser_t *parser, char names[][64], const char *what) {
  uint32_t count = 0;
  do {
    token_t at = parser->token;
    if (count == DEFINITION_NAMES) fail_at(parser, at.line, at.column, "found more than %u names, expected fewer", DEFINITION_NAMES);
    read_name(parser, names[count], what);
    for (uint32_t i = 0; i < count; i++)
      if (strcmp(names[i], names[count]) == 0) fail_at(parser, at.line, at.column, "found '%s' twice, expected different names", names[count]);
    count++;
  } while (accept(parser, ","));
  return count;
}

static uint32_t read_formal_qubit(parser_t *parser) {
  for (uint32_t i = 0; i < parser->num_qubit_names; i++)
    if (token_is(&parser->token, parser->qubit_names[i])) {
      lex_next(parser);
      return i;
    }
  fail_found(parser, "an argument of this gate");
}

static uint32_t read_body_call(parser_t *parser) {
  token_t at;
  char name[64];
  uint32_t wanted, depth, found = 0;
  call_t call = read_callee(parser, &at, name, &wanted, &depth);
  call.first_qubit = parser->qubits.count;
  do {
    token_t here = parser->token;
    uint32_t qubit = read_formal_qubit(parser);
    for (uint32_t i = 0; i < found; i++)
      if (LIST(parser->qubits, uint32_t)[call.first_qubit + i] == qubit)
        fail_at(parser, here.line, here.column, "found argument '%s' twice, expected different qubits", parser->qubit_names[qubit]);
    list_add(parser, &parser->qubits, &qubit);
    found++;
  } while (accept(parser, ","));
  if (!token_is(&parser->token, ";")) fail_found(parser, "';' or ','");
  check_count(parser, &at, name, found, wanted);
  lex_next(parser);
  list_add(parser, &parser->calls, &call);
  return depth;
}

static void read_body(parser_t *parser, definition_t *definition) {
  expect(parser, "{", "'{'");
  while (!token_is(&parser->token, "}")) {
    if (parser->token.kind == TOKEN_END) fail_found(parser, "'}' or a gate");
    if (accept(parser, "barrier")) {
      do
        read_formal_qubit(parser);
      while (accept(parser, ","));
      expect(parser, ";", "';' or ','");
      continue;
    }
    token_t at = parser->token;
    uint32_t depth = read_body_call(parser) + 1;
    if (depth > definition->depth) definition->depth = depth;
    if (depth > DEFINITION_DEPTH) fail_at(parser, at.line, at.column, "found gates nested deeper than %u definitions", DEFINITION_DEPTH);
  }
  lex_next(parser);
}

static void read_definition(parser_t *parser) {
  lex_next(parser);
  token_t at = parser->token;
  definition_t definition = {0};
  read_name(parser, definition.name, "a gate name");
  const builtin_t *builtin = builtin_find(definition.name);
  bool primitive = builtin && (strcmp(builtin->name, "U") == 0 || strcmp(builtin->name, "CX") == 0);
  /* Exporters define gates that some versions of qelib1.inc lack: a definition wins over the library, but not over the file's own. */
  if (primitive || find_definition(parser, definition.name))
    fail_at(parser, at.line, at.column, "found gate '%s', which is defined already, expected a new name", definition.name);
  parser->num_params = 0;
  if (accept(parser, "(") && !accept(parser, ")")) {
    parser->num_params = read_names(parser, parser->param_names, "a parameter name");
    expect(parser, ")", "')' or ','");
  }
  parser->num_qubit_names = read_names(parser, parser->qubit_names, "an argument name");
  definition.params = parser->num_params;
  definition.qubits = parser->num_qubit_names;
  definition.first_call = parser->calls.count;
  read_body(parser, &definition);
  definition.calls = parser->calls.count - definition.first_call;
  parser->num_params = 0;
  list_add(parser, &parser->definitions, &definition);
}

/* ---- the other statements ---- */

static void read_measure(parser_t *parser) {
  token_t at = parser->token;
  lex_next(parser);
  argument_t qubits, bits;
  read_argument(parser, true, &qubits);
  if (parser->token.kind != TOKEN_ARROW) fail_found(parser, "'->'");
  lex_next(parser);
  read_argument(parser, false, &bits);
  if (qubits.size != bits.size)
    fail_at(parser, bits.token.line, bits.token.column, "found %u bit%s for %u qubit%s, expected as many", bits.size,
            bits.size == 1 ? "" : "s", qubits.size, qubits.size == 1 ? "" : "s");
  expect(parser, ";", "';'");
  for (uint32_t i = 0; i < qubits.size; i++) {
    item_t item = {.kind = ITEM_MEASURE, .targets = 1, .target = {(uint8_t)(qubits.first + i)}, .bit = bits.first + i};
    add_item(parser, &item, &at);
  }
}

static void read_reset(parser_t *parser) {
  token_t at = parser->token;
  lex_next(parser);
  argument_t qubits;
  read_argument(parser, true, &qubits);
  expect(parser, ";", "';'");
  for (uint32_t i = 0; i < qubits.size; i++) {
    item_t item = {.kind = ITEM_RESET, .targets = 1, .target = {(uint8_t)(qubits.first + i)}};
    add_item(parser, &item, &at);
  }
}

/* A barrier orders nothing that the simulator would reorder wrongly: it is checked and dropped. */
static void read_barrier(parser_t *parser) {
  argument_t argument;
  lex_next(parser);
  do
    read_argument(parser, true, &argument);
  while (accept(parser, ","));
  expect(parser, ";", "';' or ','");
}

static void read_statement(parser_t *parser);

static void read_include(parser_t *parser) {
  lex_next(parser);
  token_t at = parser->token;
  static const char name[] = "\"qelib1.inc\"";
  if (at.kind != TOKEN_STRING || at.length != sizeof name - 1 || memcmp(at.start, name, at.length) != 0)
    fail_found(parser, "\"qelib1.inc\", the only file that can be included");
  lex_next(parser);
  if (!token_is(&parser->token, ";")) fail_found(parser, "';'");
  if (!parser->library) {
    parser->library = true;
    parser_t outer = *parser;
    lex_start(parser, gates_prelude, strlen(gates_prelude));
    lex_next(parser);
    while (parser->token.kind != TOKEN_END) read_statement(parser);
    parser->text = outer.text, parser->at = outer.at, parser->end = outer.end;
    parser->line = outer.line, parser->column = outer.column;
  }
  lex_next(parser);
}

static void read_statement(parser_t *parser) {
  const token_t *token = &parser->token;
  if (token_is(token, "qreg") || token_is(token, "creg"))
    read_register(parser, token->start[0] == 'q');
  else if (token_is(token, "gate"))
    read_definition(parser);
  else if (token_is(token, "include"))
    read_include(parser);
  else if (token_is(token, "measure"))
    read_measure(parser);
  else if (token_is(token, "reset"))
    read_reset(parser);
  else if (token_is(token, "barrier"))
    read_barrier(parser);
  else if (token_is(token, "if"))
    fail_found(parser, "a statement without a classical condition: 'if' is not supported");
  else if (token_is(token, "opaque"))
    fail_found(parser, "a gate with a definition: 'opaque' gates cannot be simulated");
  else
    read_gate_call(parser);
}

static void read_program(parser_t *parser) {
  lex_next(parser);
  expect(parser, "OPENQASM", "'OPENQASM 2.0;'");
  bool number = parser->token.kind == TOKEN_REAL || parser->token.kind == TOKEN_INTEGER;
  if (!number || parser->token.value != 2.0) fail_found(parser, "version 2.0");
  lex_next(parser);
  expect(parser, ";", "';'");
  while (parser->token.kind != TOKEN_END) read_statement(parser);
  if (parser->circuit->num_qubits == 0) fail_found(parser, "a qreg: the circuit has no qubits");
}

static void free_lists(parser_t *parser) {
  list_t *lists[] = {&parser->steps, &parser->expressions, &parser->calls, &parser->qubits, &parser->definitions};
  for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) free(lists[i]->data);
}

static bool run(parser_t *parser) {
  if (setjmp(parser->fail)) return false;
  read_program(parser);
  return true;
}

bool qasm_parse(const char *name, const char *text, size_t length, circuit_t *circuit, char *error, size_t cap) {
  memset(circuit, 0, sizeof *circuit);
  parser_t *parser = calloc(1, sizeof *parser);
  if (!parser) {
    snprintf(error, cap, "%s: out of memory", name);
    return false;
  }
  parser->file = name;
  parser->circuit = circuit;
  parser->error = error;
  parser->error_cap = cap;
  parser->steps.size = sizeof(step_t);
  parser->expressions.size = sizeof(expression_t);
  parser->calls.size = sizeof(call_t);
  parser->qubits.size = sizeof(uint32_t);
  parser->definitions.size = sizeof(definition_t);
  parser->qregs.size = parser->cregs.size = sizeof(circuit_register_t);
  lex_start(parser, text, length);
  bool good = run(parser);
  circuit->qregs = parser->qregs.data, circuit->num_qregs = parser->qregs.count;
  circuit->cregs = parser->cregs.data, circuit->num_cregs = parser->cregs.count;
  free_lists(parser);
  free(parser);
  if (!good) circuit_free(circuit);
  return good;
}

static char *read_all(FILE *file, size_t *length) {
  char *text = NULL;
  size_t used = 0, cap = 0, got;
  do {
    if (cap - used < 65536) {
      char *grown = realloc(text, cap = cap ? 2 * cap : 1 << 17);
      if (!grown) {
        free(text);
        errno = ENOMEM;
        return NULL;
      }
      text = grown;
    }
    got = fread(text + used, 1, cap - used, file);
    used += got;
  } while (got > 0);
  *length = used;
  if (!ferror(file)) return text;
  free(text);
  return NULL;
}

bool qasm_load(const char *path, circuit_t *circuit, char *error, size_t cap) {
  memset(circuit, 0, sizeof *circuit);
  size_t length = 0;
  errno = 0;
  FILE *file = fopen(path, "rb");
  char *text = file ? read_all(file, &length) : NULL;
  if (!text) snprintf(error, cap, "%s: cannot be read: %s", path, strerror(errno ? errno : EIO));
  if (file) fclose(file);
  if (!text) return false;
  bool good = qasm_parse(path, text, length, circuit, error, cap);
  free(text);
  return good;
}
