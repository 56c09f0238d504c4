/* qasm_lex.c: OpenQASM 2 text to tokens with their line and column, and the one way an error is reported.
   Called by qasm_expr.c and qasm_parse.c. May not know the grammar. */
#include "qasm_parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fail_at(parser_t *parser, unsigned line, unsigned column, const char *format, ...) {
  int used = snprintf(parser->error, parser->error_cap, "%s:%u:%u: ", parser->file, line, column);
  if (used > 0 && (size_t)used < parser->error_cap) {
    va_list list;
    va_start(list, format);
    vsnprintf(parser->error + used, parser->error_cap - (size_t)used, format, list);
    va_end(list);
  }
  longjmp(parser->fail, 1);
}

void fail_found(parser_t *parser, const char *expected) {
  char text[64];
  fail_at(parser, parser->token.line, parser->token.column, "found %s, expected %s", token_text(&parser->token, text, sizeof text),
          expected);
}

void list_add(parser_t *parser, list_t *list, const void *element) {
  if (list->count == list->capacity) {
    size_t capacity = list->capacity ? 2 * list->capacity : 32;
    void *grown = realloc(list->data, capacity * list->size);
    if (!grown) fail_at(parser, parser->token.line, parser->token.column, "out of memory while reading the circuit");
    list->data = grown;
    list->capacity = capacity;
  }
  memcpy((char *)list->data + list->count * list->size, element, list->size);
  list->count++;
}

void lex_start(parser_t *parser, const char *text, size_t length) {
  parser->text = parser->at = text;
  parser->end = text + length;
  parser->line = parser->column = 1;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static char peek(const parser_t *parser, size_t ahead) {
  return (size_t)(parser->end - parser->at) > ahead ? parser->at[ahead] : '\0';
}

static void advance(parser_t *parser) {
  if (*parser->at++ == '\n') {
    parser->line++;
    parser->column = 1;
  } else {
    parser->column++;
  }
}

static void skip_blank(parser_t *parser) {
  while (parser->at < parser->end) {
    char c = *parser->at;
    if (c == '/' && peek(parser, 1) == '/') {
      while (parser->at < parser->end && *parser->at != '\n') advance(parser);
    } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
      advance(parser);
    } else {
      return;
    }
  }
}

static void lex_number(parser_t *parser, token_t *token) {
  token->kind = TOKEN_INTEGER;
  while (is_digit(peek(parser, 0))) advance(parser);
  if (peek(parser, 0) == '.') {
    token->kind = TOKEN_REAL;
    advance(parser);
    while (is_digit(peek(parser, 0))) advance(parser);
  }
  char sign = peek(parser, 1);
  size_t skip = sign == '+' || sign == '-' ? 2 : 1;
  if ((peek(parser, 0) == 'e' || peek(parser, 0) == 'E') && is_digit(peek(parser, skip))) {
    token->kind = TOKEN_REAL;
    for (size_t i = 0; i < skip; i++) advance(parser);
    while (is_digit(peek(parser, 0))) advance(parser);
  }
  char text[64];
  size_t length = (size_t)(parser->at - token->start);
  if (length >= sizeof text) fail_at(parser, token->line, token->column, "found a number of %zu characters, expected at most 63", length);
  memcpy(text, token->start, length);
  text[length] = '\0';
  token->value = strtod(text, NULL);
}

static void lex_string(parser_t *parser, token_t *token) {
  token->kind = TOKEN_STRING;
  advance(parser);
  while (parser->at < parser->end && *parser->at != '"' && *parser->at != '\n') advance(parser);
  if (peek(parser, 0) != '"') fail_at(parser, token->line, token->column, "found a string without end, expected '\"' before the line ends");
  advance(parser);
}

void lex_next(parser_t *parser) {
  skip_blank(parser);
  token_t *token = &parser->token;
  *token = (token_t){.kind = TOKEN_END, .start = parser->at, .line = parser->line, .column = parser->column};
  if (parser->at == parser->end) return;
  char c = *parser->at;
  if (is_letter(c)) {
    token->kind = TOKEN_NAME;
    while (is_letter(peek(parser, 0)) || is_digit(peek(parser, 0))) advance(parser);
  } else if (is_digit(c) || (c == '.' && is_digit(peek(parser, 1)))) {
    lex_number(parser, token);
  } else if (c == '"') {
    lex_string(parser, token);
  } else if ((c == '-' && peek(parser, 1) == '>') || (c == '=' && peek(parser, 1) == '=')) {
    token->kind = c == '-' ? TOKEN_ARROW : TOKEN_EQUAL;
    advance(parser);
    advance(parser);
  } else {
    token->kind = TOKEN_SYMBOL;
    token->symbol = c;
    advance(parser);
    token->length = 1;
    if (c == '\0' || !strchr(";,(){}[]+-*/^", c)) fail_found(parser, "OpenQASM 2 text");
  }
  token->length = (size_t)(parser->at - token->start);
}

bool token_is(const token_t *token, const char *text) {
  return (token->kind == TOKEN_NAME || token->kind == TOKEN_SYMBOL || token->kind == TOKEN_ARROW) && strlen(text) == token->length &&
         memcmp(token->start, text, token->length) == 0;
}

const char *token_text(const token_t *token, char *buffer, size_t cap) {
  if (token->kind == TOKEN_END) return "the end of the file";
  size_t used = 0;
  buffer[used++] = '\'';
  for (size_t i = 0; i < token->length && used + 9 < cap; i++) {
    unsigned char c = (unsigned char)token->start[i];
    if (c >= 32 && c < 127)
      buffer[used++] = (char)c;
    else
      used += (size_t)snprintf(buffer + used, cap - used, "\\x%02x", c);
    if (used + 9 >= cap && i + 1 < token->length) used += (size_t)snprintf(buffer + used, cap - used, "...");
  }
  buffer[used++] = '\'';
  buffer[used] = '\0';
  return buffer;
}
