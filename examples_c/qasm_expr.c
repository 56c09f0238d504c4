/* qasm_expr.c: parameter expressions of OpenQASM 2, kept in postfix order so that a gate's body can be evaluated again and again.
   Called by qasm_parse.c. '^' binds tightest and to the right, then unary minus, then * and /, then + and -. */
#include "qasm_parser.h"

#include <math.h>
#include <string.h>

static void read_sum(parser_t *parser);

static void emit(parser_t *parser, step_kind_t kind, double number, uint32_t param) {
  list_add(parser, &parser->steps, &(step_t){.kind = kind, .param = param, .number = number});
}

static void enter(parser_t *parser) {
  if (++parser->depth > EXPRESSION_DEPTH)
    fail_at(parser, parser->token.line, parser->token.column, "found an expression nested deeper than %u", EXPRESSION_DEPTH);
}

static void read_parenthesised(parser_t *parser) {
  if (!token_is(&parser->token, "(")) fail_found(parser, "'('");
  lex_next(parser);
  read_sum(parser);
  if (!token_is(&parser->token, ")")) fail_found(parser, "')' or an operator");
  lex_next(parser);
}

static void read_name(parser_t *parser) {
  static const char *const functions[] = {"sin", "cos", "tan", "exp", "ln", "sqrt"};
  for (unsigned i = 0; i < 6; i++)
    if (token_is(&parser->token, functions[i])) {
      lex_next(parser);
      read_parenthesised(parser);
      emit(parser, (step_kind_t)(STEP_SIN + i), 0, 0);
      return;
    }
  if (token_is(&parser->token, "pi")) {
    emit(parser, STEP_NUMBER, 3.14159265358979323846, 0);
    lex_next(parser);
    return;
  }
  for (uint32_t i = 0; i < parser->num_params; i++)
    if (token_is(&parser->token, parser->param_names[i])) {
      emit(parser, STEP_PARAM, 0, i);
      lex_next(parser);
      return;
    }
  fail_found(parser, parser->num_params ? "a number, 'pi', a function or a parameter of this gate" : "a number, 'pi' or a function");
}

static void read_atom(parser_t *parser) {
  if (parser->token.kind == TOKEN_INTEGER || parser->token.kind == TOKEN_REAL) {
    emit(parser, STEP_NUMBER, parser->token.value, 0);
    lex_next(parser);
  } else if (parser->token.kind == TOKEN_NAME) {
    read_name(parser);
  } else if (token_is(&parser->token, "(")) {
    read_parenthesised(parser);
  } else {
    fail_found(parser, "an expression");
  }
}

static void read_unary(parser_t *parser) {
  enter(parser);
  if (token_is(&parser->token, "-") || token_is(&parser->token, "+")) {
    bool minus = parser->token.symbol == '-';
    lex_next(parser);
    read_unary(parser);
    if (minus) emit(parser, STEP_NEG, 0, 0);
  } else {
    read_atom(parser);
    if (token_is(&parser->token, "^")) {
      lex_next(parser);
      read_unary(parser);
      emit(parser, STEP_POW, 0, 0);
    }
  }
  parser->depth--;
}

static void read_product(parser_t *parser) {
  read_unary(parser);
  while (token_is(&parser->token, "*") || token_is(&parser->token, "/")) {
    step_kind_t kind = parser->token.symbol == '*' ? STEP_MUL : STEP_DIV;
    lex_next(parser);
    read_unary(parser);
    emit(parser, kind, 0, 0);
  }
}

static void read_sum(parser_t *parser) {
  enter(parser);
  read_product(parser);
  while (token_is(&parser->token, "+") || token_is(&parser->token, "-")) {
    step_kind_t kind = parser->token.symbol == '+' ? STEP_ADD : STEP_SUB;
    lex_next(parser);
    read_product(parser);
    emit(parser, kind, 0, 0);
  }
  parser->depth--;
}

void expression_read(parser_t *parser) {
  expression_t expression = {.first = parser->steps.count, .line = parser->token.line, .column = parser->token.column};
  parser->depth = 0;
  read_sum(parser);
  expression.count = parser->steps.count - expression.first;
  list_add(parser, &parser->expressions, &expression);
}

static double binary(step_kind_t kind, double a, double b) {
  switch (kind) {
  case STEP_ADD: return a + b;
  case STEP_SUB: return a - b;
  case STEP_MUL: return a * b;
  case STEP_DIV: return a / b;
  default: return pow(a, b);
  }
}

static double unary(step_kind_t kind, double a) {
  switch (kind) {
  case STEP_NEG: return -a;
  case STEP_SIN: return sin(a);
  case STEP_COS: return cos(a);
  case STEP_TAN: return tan(a);
  case STEP_EXP: return exp(a);
  case STEP_LN: return log(a);
  default: return sqrt(a);
  }
}

double expression_value(parser_t *parser, const expression_t *expression, const double *params) {
  double stack[4 * EXPRESSION_DEPTH]; /* each level of nesting holds at most two operands */
  size_t top = 0;
  for (size_t i = 0; i < expression->count; i++) {
    const step_t *step = &LIST(parser->steps, step_t)[expression->first + i];
    if (step->kind == STEP_NUMBER) {
      stack[top++] = step->number;
    } else if (step->kind == STEP_PARAM) {
      stack[top++] = params[step->param];
    } else if (step->kind <= STEP_POW) {
      top--;
      stack[top - 1] = binary(step->kind, stack[top - 1], stack[top]);
    } else {
      stack[top - 1] = unary(step->kind, stack[top - 1]);
    }
  }
  if (!isfinite(stack[0]))
    fail_at(parser, expression->line, expression->column, "found a parameter that is %s, expected a finite number",
            isnan(stack[0]) ? "not a number" : "infinite");
  return stack[0];
}
