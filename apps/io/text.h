/**
 * @file text.h
 * @brief Other people's bytes on our terminal: names of files, keys and cases may hold anything.
 */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>

enum { TEXT_SHOWN = 256 /**< room for a name that is shown on stdout */ };

/** One character of UTF-8, as RFC 3629 has it: the shortest form, no surrogates.
 *  @param pos   its first byte
 *  @param end  behind the last byte that may be read
 *  @param[out] code  its number in Unicode; 0 if no character begins there
 *  @return its bytes, 1 to 4; 0 if no character begins there */
size_t text_character(const unsigned char *pos, const unsigned char *end, unsigned long *code);

/** Copy text for a terminal: what is no printable character becomes \\xNN, byte by byte. A text
 * that does not fit is cut, and always ends with a NUL.
 *  @param[out] to  the copy
 *  @param capacity     its bytes, at least 1
 *  @param from     the text; need not end with a NUL
 *  @param n        its bytes
 *  @return `to` */
const char *text_show(char *to, size_t capacity, const char *from, size_t n);

#endif
