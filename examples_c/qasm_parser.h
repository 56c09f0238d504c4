/* qasm_parser.h: what the three parts of the OpenQASM 2 reader share: tokens, expressions, gate definitions, the parser's state.
   Included by qasm_lex.c, qasm_expr.c and qasm_parse.c only. An error unwinds to qasm_parse through `fail`. */
#ifndef QASM_PARSER_H
#define QASM_PARSER_H
#include "circuit.h"

#include <setjmp.h>

typedef enum { TOKEN_END, TOKEN_NAME, TOKEN_INTEGER, TOKEN_REAL, TOKEN_STRING, TOKEN_ARROW, TOKEN_EQUAL, TOKEN_SYMBOL } token_kind_t;

typedef struct {
  token_kind_t kind;
  char symbol;              /* of TOKEN_SYMBOL */
  const char *start;
  size_t length;
  unsigned line, column;
  double value;             /* of numbers */
} token_t;

/* One step of an expression in postfix order. */
typedef enum { STEP_NUMBER, STEP_PARAM, STEP_ADD, STEP_SUB, STEP_MUL, STEP_DIV, STEP_POW, STEP_NEG, STEP_SIN, STEP_COS, STEP_TAN,
               STEP_EXP, STEP_LN, STEP_SQRT } step_kind_t;
typedef struct {
  step_kind_t kind;
  uint32_t param;
  double number;
} step_t;

typedef struct {
  size_t first, count;      /* in parser.steps */
  unsigned line, column;
} expression_t;

#define EXPRESSION_DEPTH 100u
#define DEFINITION_DEPTH 200u
#define DEFINITION_NAMES 64u

struct definition;
/* A call inside a gate's body. */
typedef struct {
  const builtin_t *builtin; /* or NULL: */
  size_t definition;        /* index in parser.definitions */
  size_t first_expression;  /* in parser.expressions */
  size_t first_qubit;       /* in parser.qubits: indices of the gate's own arguments */
} call_t;

typedef struct {
  char name[64];
  uint32_t params, qubits, depth;
  size_t first_call, calls;
} definition_t;

typedef struct {
  void *data;
  size_t count, capacity, size;
} list_t;

typedef struct {
  const char *file, *text, *end;
  const char *at;           /* next byte to read */
  unsigned line, column;
  token_t token;            /* the current one */
  circuit_t *circuit;
  bool library;             /* qelib1.inc is included */
  list_t steps, expressions, calls, qubits, definitions, qregs, cregs;
  /* names valid in the gate body being read */
  char param_names[DEFINITION_NAMES][64];
  char qubit_names[DEFINITION_NAMES][64];
  uint32_t num_params, num_qubit_names;
  unsigned depth;           /* of the expression being read */
  uint64_t work;            /* gate calls expanded so far: definitions can double at every level */
  char *error;
  size_t error_cap;
  jmp_buf fail;
} parser_t;

#define LIST(list, type) ((type *)(list).data)

_Noreturn void fail_at(parser_t *parser, unsigned line, unsigned column, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* "found X, expected <expected>" at the current token. */
_Noreturn void fail_found(parser_t *parser, const char *expected);
void list_add(parser_t *parser, list_t *list, const void *element);

void lex_start(parser_t *parser, const char *text, size_t length);
void lex_next(parser_t *parser);
bool token_is(const token_t *token, const char *name_or_symbol);
/* Printable, quoted, shortened. */
const char *token_text(const token_t *token, char *buffer, size_t cap);

/* Reads one expression; its index in parser.expressions is the number of those before. */
void expression_read(parser_t *parser);
double expression_value(parser_t *parser, const expression_t *expression, const double *params);
#endif
