/** @file json.c
 *  @brief A recogniser for RFC 8259, a function for each of its rules. Each leaves the place behind
 * what it took, or at the byte where it was stuck. */
#include "io/json.h"
#include "io/npy.h"
#include "io/text.h"

#include <stdio.h>
#include <string.h>

enum { DEEPEST = 64 };

/** A place in the text. */
typedef struct place {
    const unsigned char *at;    /**< the next byte */
    const unsigned char *end;   /**< behind the last byte */
    const unsigned char *start; /**< the first byte */
    const char *expected;       /**< what should have stood at `at`; NULL while all is well */
    int depth;                  /**< arrays and objects around it */
} place;

/* @return 0, for `return stuck(...)` */
static int stuck(place *p, const char *expected) {
    p->expected = p->expected ? p->expected : expected;
    return 0;
}

static int at(const place *p, char wanted) {
    return p->at < p->end && *p->at == (unsigned char)wanted;
}

static int at_digit(const place *p) {
    return p->at < p->end && *p->at >= '0' && *p->at <= '9';
}

/* Step over a byte, if it comes next. */
static int take(place *p, char wanted) {
    if (!at(p, wanted))
        return 0;
    p->at++;
    return 1;
}

/* ws = *( space / tab / line feed / carriage return ) */
static void skip_space(place *p) {
    while (at(p, ' ') || at(p, '\t') || at(p, '\n') || at(p, '\r'))
        p->at++;
}

static int take_word(place *p, const char *word) {
    for (; *word; word++) {
        if (!take(p, *word))
            return stuck(p, "null, true or false");
    }
    return 1;
}

static int take_digits(place *p) {
    if (!at_digit(p))
        return stuck(p, "a digit");
    while (at_digit(p))
        p->at++;
    return 1;
}

/* number = [ - ] int [ . 1*DIGIT ] [ ( e / E ) [ - / + ] 1*DIGIT ];  int = 0 / 1-9 *DIGIT */
static int take_number(place *p) {
    (void)take(p, '-');
    if (take(p, '0')) {
        if (at_digit(p))
            return stuck(p, "a number without leading zeros");
    } else if (!take_digits(p)) {
        return 0;
    }
    if (take(p, '.') && !take_digits(p))
        return 0;
    if (!take(p, 'e') && !take(p, 'E'))
        return 1;
    if (!take(p, '-'))
        (void)take(p, '+');
    return take_digits(p);
}

/* What follows a backslash. */
static int take_escape(place *p) {
    if (p->at == p->end || !*p->at || !strchr("\"\\/bfnrtu", *p->at))
        return stuck(p, "one of \"\\/bfnrtu after a backslash");
    if (*p->at++ != 'u')
        return 1;
    for (int i = 0; i < 4; i++, p->at++) {
        if (p->at == p->end || !*p->at || !strchr("0123456789abcdefABCDEF", *p->at))
            return stuck(p, "four hexadecimal digits after \\u");
    }
    return 1;
}

static int take_string(place *p) {
    unsigned long code;
    if (!take(p, '"'))
        return stuck(p, "a string in double quotes");
    while (!at(p, '"')) {
        if (p->at == p->end)
            return stuck(p, "a closing quote");
        if (*p->at < ' ')
            return stuck(p, "an escape in place of a control character");
        if (take(p, '\\')) {
            if (!take_escape(p))
                return 0;
            continue;
        }
        const size_t bytes = text_character(p->at, p->end, &code);
        if (!bytes)
            return stuck(p, "UTF-8 in a string");
        p->at += bytes;
    }
    return take(p, '"');
}

static int take_value(place *p);

/* The parts of an array or (`keys`) an object, up to the closing bracket. */
static int take_parts(place *p, char close, int keys) {
    p->at++; /* the bracket that opens it */
    skip_space(p);
    if (take(p, close))
        return 1;
    if (++p->depth > DEEPEST)
        return stuck(p, "fewer brackets within brackets");
    do {
        skip_space(p);
        if (keys && !take_string(p))
            return 0;
        skip_space(p);
        if (keys && !take(p, ':'))
            return stuck(p, "':'");
        if (!take_value(p))
            return 0;
    } while (take(p, ','));
    p->depth--;
    return take(p, close) || stuck(p, keys ? "',' or '}'" : "',' or ']'");
}

/* A value, and the white space around it. The recursion ends at DEEPEST. */
static int take_value(place *p) { /* NOLINT(misc-no-recursion) */
    skip_space(p);
    const int taken = at(p, '{')                  ? take_parts(p, '}', 1)
                      : at(p, '[')                ? take_parts(p, ']', 0)
                      : at(p, '"')                ? take_string(p)
                      : at(p, '-') || at_digit(p) ? take_number(p)
                      : at(p, 't')                ? take_word(p, "true")
                      : at(p, 'f')                ? take_word(p, "false")
                      : at(p, 'n')                ? take_word(p, "null")
                                                  : stuck(p, "a value");
    if (taken) /* else the place is where it was stuck */
        skip_space(p);
    return taken;
}

nsa_status json_check(const char *text, size_t n, nsa_status status, const char *label) {
    /* the text of nothing may be NULL */
    const unsigned char *start = (const unsigned char *)(n ? text : "");
    place p = {.at = start, .end = start + n, .start = start};
    char found[TEXT_SHOWN] = "its end";
    if (take_value(&p) && p.at < p.end)
        (void)stuck(&p, "nothing more");
    if (!p.expected)
        return NSA_OK;
    if (p.at < p.end) {
        const size_t left = (size_t)(p.end - p.at), some = left < 12 ? left : 12;
        text_show(found, sizeof found, (const char *)p.at, some);
    }
    return nsa_fail(status, "%s: not JSON: stuck at byte %td of %zu: expected %s, found %s",
                    npy_label(label), p.at - start, n, p.expected, found);
}
