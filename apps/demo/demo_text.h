/**
 * @file demo_text.h
 * @brief The text that the demo reads, and the passage that it plants in it a second time.
 */
#ifndef DEMO_TEXT_H
#define DEMO_TEXT_H

#include <stdint.h>

enum {
    DEMO_MIN_BYTES = 2048,  /**< minimum bytes: in a shorter text nearly every block is selected */
    DEMO_MAX_BYTES = 65280, /**< maximum bytes read from a file; with the passage, 64k tokens */
    DEMO_MAX_PASSAGE = 256  /**< maximum bytes of the planted passage */
};

/** A text of bytes, one byte a token. */
typedef struct demo_text {
    unsigned char *byte; /**< [T], the planted passage included */
    int64_t T;           /**< tokens */
    char name[512];      /**< its name in the report */
    int64_t bytes_read;  /**< bytes read from the file */
    int cut;             /**< 1 if the file is longer */
    int64_t first;       /**< offset of the passage */
    int64_t second;      /**< offset of its copy */
    int64_t length;      /**< bytes of the passage */
    double familiar;     /**< share of the passage that occurs elsewhere in the text too */
} demo_text;

/** Read a text; errors are printed.
 *  @param path       a file, "-" for standard input, NULL for the project's own essay
 *  @param[out] text  for demo_text_free(), on success
 *  @return an exit_code */
int demo_text_load(const char *path, demo_text *text);

/** Insert a copy of a passage at about 12% of the text at about 85%. If that passage is not
 * distinctive, a later one is used.
 *  @param text  changed in place: it grows by the passage */
void demo_text_plant(demo_text *text);

/** Copy `count` bytes from `start` for printing: spaces for line ends, dots for unprintable bytes.
 *  @param text   the text
 *  @param start  first byte
 *  @param count  bytes
 *  @param line   at least count+1 bytes
 *  @return `line` */
const char *demo_text_quote(const demo_text *text, int64_t start, int64_t count, char *line);

/** Free the text's memory.
 *  @param text  of demo_text_load() */
void demo_text_free(demo_text *text);

#endif
