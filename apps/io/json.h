/**
 * @file json.h
 * @brief A strict check of JSON, RFC 8259: cJSON accepts leading zeros, numbers that end with a
 * point, control characters in strings and a byte order mark.
 */
#ifndef JSON_H
#define JSON_H

#include "nsa.h"

#include <stddef.h>

/** Check that a text is one JSON value in UTF-8 and nothing else, nested at most 64 deep.
 *  @param text    need not end with a NUL
 *  @param n       its length
 *  @param status  what to return if it is not
 *  @param label   the file's name in errors
 *  @return NSA_OK, or `status` with the position, what was expected there and what was found */
nsa_status json_check(const char *text, size_t n, nsa_status status, const char *label);

#endif
