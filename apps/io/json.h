/**
 * @file json.h
 * @brief The grammar of JSON, RFC 8259, to the letter: cJSON takes leading zeros, numbers that end
 * with a point, control characters in strings and a byte order mark.
 */
#ifndef JSON_H
#define JSON_H

#include "nsa.h"

#include <stddef.h>

/** Check that a text is one JSON value in UTF-8 and nothing else, nested at most 64 deep.
 *  @param text    need not end with a NUL
 *  @param n       its length
 *  @param status  what to return if it is not
 *  @param label   what an error calls the file
 *  @return NSA_OK, or `status` with the place, what was expected there and what was found */
nsa_status json_check(const char *text, size_t n, nsa_status status, const char *label);

#endif
