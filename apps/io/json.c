/** @file json.c
 *  @brief A recogniser for RFC 8259, with one function for each rule. Each advances the cursor past
 * what it parsed, or stops at the byte of the error. */
#include "io/json.h"
#include "io/npy.h"
#include "io/text.h"

#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

/** A position in the text. */
typedef struct cursor {
    const unsigned char *pos;   /**< the next byte */
    const unsigned char *end;   /**< past the last byte */
    const unsigned char *start; /**< the first byte */
    const char *expected;       /**< what was expected at `pos`; NULL: no error */
    int depth;                  /**< nesting of arrays and objects */
} cursor;

/* @return 0, so that callers can `return stuck(...)` */
static int stuck(cursor *p, const char *expected) {
    p->expected = p->expected ? p->expected : expected;
    return 0;
}

static int next_is(const cursor *p, char wanted) {
    return p->pos < p->end && *p->pos == (unsigned char)wanted;
}

static int next_is_digit(const cursor *p) {
    return p->pos < p->end && *p->pos >= '0' && *p->pos <= '9';
}

/* Skip `wanted`, if it comes next. */
static int accept(cursor *p, char wanted) {
    if (!next_is(p, wanted))
        return 0;
    p->pos++;
    return 1;
}

/* ws = *( space / tab / line feed / carriage return ) */
static void skip_space(cursor *p) {
    while (next_is(p, ' ') || next_is(p, '\t') || next_is(p, '\n') || next_is(p, '\r'))
        p->pos++;
}

static int parse_literal(cursor *p, const char *word) {
    for (; *word; word++) {
        if (!accept(p, *word))
            return stuck(p, "null, true or false");
    }
    return 1;
}

static int parse_digits(cursor *p) {
    if (!next_is_digit(p))
        return stuck(p, "a digit");
    while (next_is_digit(p))
        p->pos++;
    return 1;
}

/* number = [ - ] int [ . 1*DIGIT ] [ ( e / E ) [ - / + ] 1*DIGIT ];  int = 0 / 1-9 *DIGIT */
static int parse_number(cursor *p) {
    (void)accept(p, '-');
    if (accept(p, '0')) {
        if (next_is_digit(p))
            return stuck(p, "a number without leading zeros");
    } else if (!parse_digits(p)) {
        return 0;
    }
    if (accept(p, '.') && !parse_digits(p))
        return 0;
    if (!accept(p, 'e') && !accept(p, 'E'))
        return 1;
    if (!accept(p, '-'))
        (void)accept(p, '+');
    return parse_digits(p);
}

/* What follows a backslash. */
static int parse_escape(cursor *p) {
    if (p->pos == p->end || !*p->pos || !strchr("\"\\/bfnrtu", *p->pos))
        return stuck(p, "one of \"\\/bfnrtu after a backslash");
    if (*p->pos++ != 'u')
        return 1;
    for (int i = 0; i < 4; i++, p->pos++) {
        if (p->pos == p->end || !*p->pos || !strchr("0123456789abcdefABCDEF", *p->pos))
            return stuck(p, "four hexadecimal digits after \\u");
    }
    return 1;
}

static int parse_string(cursor *p) {
    unsigned long code;
    if (!accept(p, '"'))
        return stuck(p, "a string in double quotes");
    while (!next_is(p, '"')) {
        if (p->pos == p->end)
            return stuck(p, "a closing quote");
        if (*p->pos < ' ')
            return stuck(p, "an escape in place of a control character");
        if (accept(p, '\\')) {
            if (!parse_escape(p))
                return 0;
            continue;
        }
        const size_t bytes = text_character(p->pos, p->end, &code);
        if (!bytes)
            return stuck(p, "UTF-8 in a string");
        p->pos += bytes;
    }
    return accept(p, '"');
}

static int parse_value(cursor *p);

/* The elements of an array, or with `keys` the members of an object, and the closing bracket. */
static int parse_members(cursor *p, char close, int keys) {
    p->pos++; /* the bracket that opens it */
    skip_space(p);
    if (accept(p, close))
        return 1;
    if (++p->depth > MAX_DEPTH)
        return stuck(p, "fewer brackets within brackets");
    do {
        skip_space(p);
        if (keys && !parse_string(p))
            return 0;
        skip_space(p);
        if (keys && !accept(p, ':'))
            return stuck(p, "':'");
        if (!parse_value(p))
            return 0;
    } while (accept(p, ','));
    p->depth--;
    return accept(p, close) || stuck(p, keys ? "',' or '}'" : "',' or ']'");
}

/* A value, and the white space around it. The recursion is limited by MAX_DEPTH. */
static int parse_value(cursor *p) { /* NOLINT(misc-no-recursion) */
    skip_space(p);
    const int parsed = next_is(p, '{')                       ? parse_members(p, '}', 1)
                       : next_is(p, '[')                     ? parse_members(p, ']', 0)
                       : next_is(p, '"')                     ? parse_string(p)
                       : next_is(p, '-') || next_is_digit(p) ? parse_number(p)
                       : next_is(p, 't')                     ? parse_literal(p, "true")
                       : next_is(p, 'f')                     ? parse_literal(p, "false")
                       : next_is(p, 'n')                     ? parse_literal(p, "null")
                                                             : stuck(p, "a value");
    if (parsed) /* else the cursor stays at the error */
        skip_space(p);
    return parsed;
}

nsa_status json_check(const char *text, size_t n, nsa_status status, const char *label) {
    /* an empty text may be NULL */
    const unsigned char *start = (const unsigned char *)(n ? text : "");
    cursor p = {.pos = start, .end = start + n, .start = start};
    char found[TEXT_SHOWN] = "its end";
    if (parse_value(&p) && p.pos < p.end)
        (void)stuck(&p, "nothing more");
    if (!p.expected)
        return NSA_OK;
    if (p.pos < p.end) {
        const size_t left = (size_t)(p.end - p.pos), shown = left < 12 ? left : 12;
        text_show(found, sizeof found, (const char *)p.pos, shown);
    }
    return nsa_fail(status, "%s: not JSON: stuck at byte %td of %zu: expected %s, found %s",
                    npy_label(label), p.pos - start, n, p.expected, found);
}
