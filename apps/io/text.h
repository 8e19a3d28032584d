/**
 * @file text.h
 * @brief Showing names of files, keys and cases, which may contain any bytes, on a terminal.
 */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>

enum { TEXT_SHOWN = 256 /**< capacity for a name to show */ };

/** One character of UTF-8, as in RFC 3629: shortest form, no surrogates.
 *  @param pos   its first byte
 *  @param end  past the last byte that may be read
 *  @param[out] code  its number in Unicode; 0 if no character begins there
 *  @return its bytes, 1 to 4; 0 if no character begins there */
size_t text_character(const unsigned char *pos, const unsigned char *end, unsigned long *code);

/** Copy text for a terminal: bytes of unprintable characters become \\xNN. A text that does not fit
 * is cut, and always ends with a NUL.
 *  @param[out] to  the copy
 *  @param capacity     its bytes, at least 1
 *  @param from     the text; need not end with a NUL
 *  @param n        its bytes
 *  @return `to` */
const char *text_show(char *to, size_t capacity, const char *from, size_t n);

#endif
