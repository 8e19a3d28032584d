/** @file demo_text.c
 *  @brief Find and read the text, and plant a passage in it. */
#include "demo/demo_text.h"
#include "commands.h"
#include "io/file.h"
#include "io/text.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char who[] = "nsa demo";

/* ------------------------------------------------------------------ reading */

/* Open the essay: in $NSA_SHARE, else in the source tree or the installed share folder. */
static nsa_status open_essay(FILE **file) {
    char self[PATH_MAX - 64], path[PATH_MAX];
    const char *share = getenv("NSA_SHARE");
    if (share && *share) {
        /* If $NSA_SHARE is set, the essay must be there: falling back would hide a mistake. */
        snprintf(path, sizeof path, "%s/text.txt", share);
        return file_stream(path, file);
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    static const char *const places_to_look[] = {"../apps/demo/text.txt", "../share/nsa/text.txt"};
    nsa_status status = NSA_ERR_IO;
    for (size_t i = 0; i < 2 && status; i++) {
        snprintf(path, sizeof path, "%s/%s", self, places_to_look[i]);
        status = file_stream(path, file);
    }
    return status;
}

/* Read up to DEMO_MAX_BYTES, and note whether the file is longer. Leaves capacity for the
 * passage. */
static int read_bytes(FILE *file, demo_text *text) {
    text->byte = malloc(DEMO_MAX_BYTES + DEMO_MAX_PASSAGE + 1);
    if (!text->byte)
        return command_error(EXIT_FAILED, who, "no memory for the text");
    size_t n = fread(text->byte, 1, DEMO_MAX_BYTES + 1, file);
    if (ferror(file))
        return command_error(EXIT_USAGE, who, "%s: %s", text->name, strerror(errno));
    text->cut = n > DEMO_MAX_BYTES;
    text->bytes_read = text->T = text->cut ? DEMO_MAX_BYTES : (int64_t)n;
    if (text->T < DEMO_MIN_BYTES)
        return command_error(EXIT_USAGE, who,
                             "%s holds %" PRId64 " bytes, expected at least %d for blocks to be "
                             "chosen among",
                             text->name, text->T, DEMO_MIN_BYTES);
    return EXIT_DONE;
}

int demo_text_load(const char *path, demo_text *text) {
    *text = (demo_text){0};
    int standard = path && !strcmp(path, "-");
    const char *name = !path      ? "the project's own essay (apps/demo/text.txt)"
                       : standard ? "standard input"
                                  : path;
    text_show(text->name, sizeof text->name, name, strlen(name));
    FILE *file = standard ? stdin : NULL;
    nsa_status status = standard ? NSA_OK : path ? file_stream(path, &file) : open_essay(&file);
    if (status && !path)
        return command_error(EXIT_USAGE, who,
                             "no text.txt in $NSA_SHARE, ../apps/demo or ../share/nsa (%s); name a "
                             "FILE",
                             nsa_last_error());
    if (status)
        return command_status(status, who);
    int code = read_bytes(file, text);
    if (!standard)
        fclose(file);
    if (code)
        demo_text_free(text);
    return code;
}

void demo_text_free(demo_text *text) {
    free(text->byte);
    text->byte = NULL;
}

/* ----------------------------------------------------------------- planting */

/* 1 if the piece at `pos` occurs anywhere else in the text. */
static int stands_elsewhere(const demo_text *text, int64_t pos, int64_t piece) {
    const unsigned char *byte = text->byte;
    for (int64_t i = 0; i + piece <= text->T; i++) {
        if (byte[i] == byte[pos] && i != pos && !memcmp(byte + i, byte + pos, (size_t)piece))
            return 1;
    }
    return 0;
}

/* The share of a passage's 12-byte pieces that occur elsewhere in the text. Finding a common
 * passage again would prove nothing. */
static double familiarity(const demo_text *text, int64_t start, int64_t length) {
    enum { PIECE = 12 };
    int64_t known = 0, pieces = length - PIECE + 1;
    for (int64_t i = start; i < start + pieces; i++)
        known += stands_elsewhere(text, i, PIECE);
    return (double)known / (double)pieces;
}

/* The start of the next word within 24 bytes; in binary data, `start`. */
static int64_t word_from(const demo_text *text, int64_t start) {
    for (int64_t i = start; i < start + 24; i++) {
        if (text->byte[i - 1] == ' ' || text->byte[i - 1] == '\n')
            return i;
    }
    return start;
}

void demo_text_plant(demo_text *text) {
    int64_t T = text->T, length = DEMO_MAX_PASSAGE;
    double best = 2;
    /* Try 12% first, and later positions while the passage is not distinctive enough. */
    for (int64_t percent = 12; percent <= 52 && best > 0.25; percent += 4) {
        int64_t start = word_from(text, T * percent / 100);
        double share = familiarity(text, start, length);
        if (share < best) {
            best = share;
            text->first = start;
        }
    }
    text->familiar = best;
    /* End at a space, but keep at least 192 bytes. */
    for (int64_t n = length; n > 192; n--) {
        if (text->byte[text->first + n - 1] == ' ') {
            length = n;
            break;
        }
    }
    text->length = length;
    text->second = word_from(text, T * 85 / 100);
    memmove(text->byte + text->second + length, text->byte + text->second,
            (size_t)(T - text->second));
    memcpy(text->byte + text->second, text->byte + text->first, (size_t)length);
    text->T = T + length;
}

const char *demo_text_quote(const demo_text *text, int64_t start, int64_t count, char *line) {
    int64_t n = 0;
    for (; n < count && start + n < text->T; n++) {
        unsigned char c = text->byte[start + n];
        line[n] = c == '\n' ? ' ' : '.';
        if (c >= ' ' && c < 127)
            line[n] = (char)c;
    }
    line[n] = 0;
    return line;
}
