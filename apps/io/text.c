/** @file text.c
 *  @brief Escape unprintable bytes. */
#include "io/text.h"

#include <stdio.h>
#include <string.h>

size_t text_character(const unsigned char *pos, const unsigned char *end, unsigned long *code) {
    const size_t left = (size_t)(end - pos);
    const unsigned first = left ? pos[0] : 0x80;
    const size_t bytes = first < 0x80   ? 1
                         : first < 0xc2 ? 0
                         : first < 0xe0 ? 2
                         : first < 0xf0 ? 3
                                        : 4;
    unsigned long value = bytes == 1 ? first : first & (0x7fu >> bytes);
    *code = 0; /* if there is no character */
    if (!bytes || bytes > left || first > 0xf4)
        return 0;
    for (size_t i = 1; i < bytes; i++) {
        if ((pos[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (pos[i] & 0x3f);
    }
    const int shortest = bytes < 3 || value >= (bytes == 3 ? 0x800 : 0x10000);
    const int surrogate = value >= 0xd800 && value < 0xe000;
    if (!shortest || surrogate || value >= 0x110000)
        return 0;
    *code = value;
    return bytes;
}

/* Characters that are invisible or change how others are shown: control characters, zero-width and
 * direction marks, byte order marks. */
static int hidden(unsigned long code) {
    return code < ' ' || (code >= 0x7f && code < 0xa0) || (code >= 0x200b && code < 0x2010) ||
           (code >= 0x2028 && code < 0x202f) || (code >= 0x2060 && code < 0x2070) || code == 0xfeff;
}

const char *text_show(char *to, size_t capacity, const char *from, size_t n) {
    const unsigned char *pos = (const unsigned char *)from, *end = pos + n;
    unsigned long code;
    size_t used = 0;
    while (pos < end) {
        const size_t read = text_character(pos, end, &code), bytes = hidden(code) ? 0 : read;
        const size_t wanted = bytes ? bytes : 4;
        if (used + wanted >= capacity)
            break;
        if (bytes)
            memcpy(to + used, pos, bytes);
        else
            snprintf(to + used, capacity - used, "\\x%02x", *pos);
        used += wanted;
        pos += bytes ? bytes : 1;
    }
    to[used] = 0;
    return to;
}
