/** @file npy.c
 *  @brief Reading and writing .npy files; every field of a header is checked before it is used.
 *
 *  Layout: "\x93NUMPY", version 1 0, a 16-bit length, a header of that length, the data. The header
 * is a Python dict literal: {'descr': '<f4', 'fortran_order': False, 'shape': (97, 4, 8), } */
#include "io/npy.h"
#include "io/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, ".npy data is copied as it is");

enum {
    FIXED = 10,                  /* magic, version and the header's length */
    MAX_HEADER = FIXED + 0xffff, /* the length has 16 bits */
    ALIGN = 64,                  /* data that we write starts at a multiple of this */
    MAX_STRING = 40              /* longest key or type, with its NUL */
};

static const unsigned char magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

/** The supported element types and their names in files. */
static const struct {
    const char *descr; /**< as in the header */
    nsa_dtype dtype;   /**< as in the contract */
} types[] = {{"<f4", NSA_F32}, {"<f8", NSA_F64}, {"<i4", NSA_I32}};

enum { TYPES = sizeof types / sizeof types[0] };

const char *npy_label(const char *label) {
    size_t n = strlen(label);
    return n > 200 ? label + n - 200 : label;
}

/* ----------------------------------------------------------- the dict literal */

/** A position in the header. */
typedef struct cursor {
    const unsigned char *pos;   /**< the next byte */
    const unsigned char *end;   /**< past the last byte */
    const unsigned char *start; /**< the first byte of the file, for positions in errors */
    const char *label;          /**< the file, in errors */
} cursor;

/* The error that something else was expected; an unprintable byte is shown in hex. */
static nsa_status unexpected(const cursor *c, const char *expected) {
    char found[32] = "the header's end";
    if (c->pos < c->end)
        snprintf(found, sizeof found, *c->pos > ' ' && *c->pos < 127 ? "'%c'" : "byte 0x%02x",
                 *c->pos);
    return nsa_fail(NSA_ERR_INPUT, "%s: header byte %zu: expected %s, found %s",
                    npy_label(c->label), (size_t)(c->pos - c->start), expected, found);
}

static void skip_space(cursor *c) {
    while (c->pos < c->end &&
           (*c->pos == ' ' || *c->pos == '\n' || *c->pos == '\t' || *c->pos == '\r'))
        c->pos++;
}

/* Skip white space and then `wanted`, if it comes next. */
static int accept(cursor *c, char wanted) {
    skip_space(c);
    if (c->pos == c->end || *c->pos != (unsigned char)wanted)
        return 0;
    c->pos++;
    return 1;
}

/* 'text' or "text", printable, without escapes: no key or type needs one. */
static nsa_status parse_string(cursor *c, char text[MAX_STRING], const char *expected) {
    char quote = accept(c, '\'') ? '\'' : accept(c, '"') ? '"' : 0;
    size_t n = 0;
    if (!quote)
        return unexpected(c, expected);
    for (; c->pos < c->end && *c->pos != (unsigned char)quote; c->pos++) {
        if (*c->pos < ' ' || *c->pos > 126 || *c->pos == '\\' || n + 1 == MAX_STRING)
            return unexpected(c, "the end of a short plain string");
        text[n++] = (char)*c->pos;
    }
    text[n] = 0;
    return accept(c, quote) ? NSA_OK : unexpected(c, "a closing quote");
}

/* Skip white space and then `word`, if it comes next. The caller checks what follows. */
static int accept_word(cursor *c, const char *word) {
    size_t n = strlen(word);
    skip_space(c);
    if ((size_t)(c->end - c->pos) < n || memcmp(c->pos, word, n))
        return 0;
    c->pos += n;
    return 1;
}

/* Digits only, as Python writes them: no sign, no leading zero, at most 63 bits. */
static nsa_status parse_dimension(cursor *c, int64_t *value) {
    skip_space(c);
    const unsigned char *first = c->pos;
    *value = 0;
    for (; c->pos < c->end && *c->pos >= '0' && *c->pos <= '9'; c->pos++) {
        if (__builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, *c->pos - '0', value))
            return nsa_fail(NSA_ERR_INPUT, "%s: header byte %zu: a dimension overflows 63 bits",
                            npy_label(c->label), (size_t)(first - c->start));
    }
    if (c->pos == first || (*first == '0' && c->pos - first > 1))
        return unexpected(c, "a dimension, a whole number from 0");
    return NSA_OK;
}

/* "(5,)", "(5, 4)", "(5, 4, 3)": a tuple, so a single dimension needs its comma. */
static nsa_status parse_shape(cursor *c, nsa_tensor *t) {
    int comma = 0;
    if (!accept(c, '('))
        return unexpected(c, "the shape, a tuple");
    for (t->ndim = 0; !accept(c, ')'); t->ndim++) {
        if (t->ndim && !comma)
            return unexpected(c, "',' or ')'");
        if (t->ndim == 3)
            return nsa_fail(NSA_ERR_INPUT, "%s: more than 3 dimensions, expected 1 to 3",
                            npy_label(c->label));
        nsa_status status = parse_dimension(c, &t->shape[t->ndim]);
        if (status)
            return status;
        comma = accept(c, ',');
    }
    if (t->ndim == 0)
        return nsa_fail(NSA_ERR_INPUT, "%s: 0 dimensions, expected 1 to 3", npy_label(c->label));
    return t->ndim > 1 || comma ? NSA_OK : unexpected(c, "\"(N,)\" for one dimension");
}

/* The value of descr. A structured type is a list, not a string, and is refused. */
static nsa_status parse_type(cursor *c, nsa_tensor *t) {
    char descr[MAX_STRING];
    nsa_status status = parse_string(c, descr, "descr, a quoted type");
    for (int i = 0; !status && i < TYPES; i++) {
        if (!strcmp(descr, types[i].descr))
            t->dtype = types[i].dtype;
    }
    if (!status && !t->dtype)
        status = nsa_fail(NSA_ERR_INPUT, "%s: type '%s' is not one of '<f4', '<f8', '<i4'",
                          npy_label(c->label), descr);
    return status;
}

/* The value of fortran_order: only C order is supported. */
static nsa_status parse_order(cursor *c) {
    if (accept_word(c, "False"))
        return NSA_OK;
    if (accept_word(c, "True"))
        return nsa_fail(NSA_ERR_INPUT, "%s: fortran_order is True, expected False: C order",
                        npy_label(c->label));
    return unexpected(c, "True or False");
}

/* One "key: value"; each of the three keys once, in any order. */
static nsa_status parse_entry(cursor *c, nsa_tensor *t, unsigned *seen) {
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    char key[MAX_STRING];
    unsigned which = 0;
    nsa_status status = parse_string(c, key, "a quoted key");
    if (status)
        return status;
    while (which < 3 && strcmp(key, keys[which]))
        which++;
    if (which == 3 || (*seen & 1u << which))
        return nsa_fail(NSA_ERR_INPUT,
                        "%s: %s key '%s'; expected descr, fortran_order and shape, once each",
                        npy_label(c->label), which == 3 ? "unknown" : "second", key);
    *seen |= 1u << which;
    if (!accept(c, ':'))
        return unexpected(c, "':'");
    return which == 0 ? parse_type(c, t) : which == 1 ? parse_order(c) : parse_shape(c, t);
}

/* The whole header: entries with commas between them, one more allowed at the end. */
static nsa_status parse_dict(cursor *c, nsa_tensor *t) {
    unsigned seen = 0;
    int comma = 1;
    nsa_status status = NSA_OK;
    if (!accept(c, '{'))
        return unexpected(c, "'{'");
    while (!status && !accept(c, '}')) {
        status = comma ? parse_entry(c, t, &seen) : unexpected(c, "',' or '}'");
        comma = accept(c, ',');
    }
    if (!status && seen != 7)
        status = nsa_fail(NSA_ERR_INPUT, "%s: the header has no %s", npy_label(c->label),
                          !(seen & 1)   ? "descr"
                          : !(seen & 2) ? "fortran_order"
                                        : "shape");
    skip_space(c);
    if (!status && c->pos != c->end)
        status = unexpected(c, "nothing but white space after the dict");
    return status;
}

/* --------------------------------------------------------------------- reading */

/* Parse type and shape from the first `n` bytes of a file of `size` bytes; header and data must
 * fill the file exactly. `data` is the offset of the data, `bytes` its size. */
static nsa_status parse_header(const unsigned char *file, size_t n, uint64_t size,
                               const char *label, nsa_tensor *t, size_t *data, size_t *bytes) {
    if (n < FIXED || memcmp(file, magic, sizeof magic))
        return nsa_fail(NSA_ERR_INPUT, "%s: not a .npy file: it does not start with \\x93NUMPY",
                        npy_label(label));
    if (file[6] != 1 || file[7] != 0)
        return nsa_fail(NSA_ERR_INPUT, "%s: .npy version %d.%d, expected 1.0", npy_label(label),
                        file[6], file[7]);
    *data = FIXED + (size_t)file[8] + ((size_t)file[9] << 8);
    if (*data > n)
        return nsa_fail(NSA_ERR_INPUT, "%s: the header ends at byte %zu, the file at byte %" PRIu64,
                        npy_label(label), *data, size);
    cursor c = {file + FIXED, file + *data, file, label};
    nsa_status status = parse_dict(&c, t);
    if (status)
        return status;
    int64_t count = nsa_count(t), claimed = 0;
    if (count < 0 || __builtin_mul_overflow(count, (int64_t)nsa_dtype_size(t->dtype), &claimed))
        return nsa_fail(NSA_ERR_INPUT,
                        "%s: the %d dimensions from %" PRId64 " on overflow 63-bit sizes",
                        npy_label(label), t->ndim, t->shape[0]);
    if ((uint64_t)claimed != size - *data)
        return nsa_fail(NSA_ERR_INPUT,
                        "%s: %" PRIu64 " bytes of data, expected %" PRId64
                        " from the header's shape and type",
                        npy_label(label), size - *data, claimed);
    *bytes = (size_t)claimed;
    return NSA_OK;
}

/* Allocate the data; at least one byte, so that NULL always means out of memory. */
static nsa_status alloc_data(const char *label, size_t bytes, nsa_tensor *t) {
    t->data = malloc(bytes ? bytes : 1);
    return t->data
               ? NSA_OK
               : nsa_fail(NSA_ERR_MEMORY, "%s: no memory for %zu bytes", npy_label(label), bytes);
}

nsa_status npy_parse(const unsigned char *bytes, size_t n, const char *label, nsa_tensor *t) {
    size_t data = 0, length = 0;
    nsa_tensor read = {0};
    *t = read; /* absent on an error */
    nsa_status status = parse_header(bytes, n, n, label, &read, &data, &length);
    status = status ? status : alloc_data(label, length, &read);
    if (status)
        return status;
    memcpy(read.data, bytes + data, length);
    *t = read;
    return NSA_OK;
}

/* Read exactly `n` bytes from `offset`. */
static nsa_status read_exactly(int fd, const char *path, void *to, size_t n, size_t offset) {
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)to + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return nsa_fail(NSA_ERR_IO, "%s: cannot read byte %zu: %s", npy_label(path),
                            offset + done, got ? strerror(errno) : "the file became shorter");
        done += (size_t)got;
    }
    return NSA_OK;
}

/* Read the header, at most 64 KiB; then, if the file's size is right, the data. */
static nsa_status read_open(int fd, off_t size, const char *path, nsa_tensor *t) {
    size_t data = 0, bytes = 0;
    nsa_tensor read = {0};
    size_t first = size < MAX_HEADER ? (size_t)size : MAX_HEADER;
    unsigned char *head = malloc(MAX_HEADER);
    if (!head)
        return nsa_fail(NSA_ERR_MEMORY, "%s: no memory for its header", npy_label(path));
    nsa_status status = read_exactly(fd, path, head, first, 0);
    if (!status)
        status = parse_header(head, first, (uint64_t)size, path, &read, &data, &bytes);
    free(head);
    status = status ? status : alloc_data(path, bytes, &read);
    status = status ? status : read_exactly(fd, path, read.data, bytes, data);
    if (status)
        npy_free(&read);
    *t = read;
    return status;
}

nsa_status npy_read(const char *path, nsa_tensor *t) {
    struct stat st;
    int fd;
    *t = (nsa_tensor){0};
    nsa_status status = file_open(path, &fd, &st);
    if (status)
        return status;
    status = read_open(fd, st.st_size, path, t);
    close(fd);
    return status;
}

void npy_free(nsa_tensor *t) {
    free(t->data);
    *t = (nsa_tensor){0};
}

/* --------------------------------------------------------------------- writing */

/* The whole header, fixed part included; returns its length, a multiple of ALIGN. */
static size_t make_header(const nsa_tensor *t, const char *descr, char text[4 * ALIGN]) {
    int n = snprintf(text + FIXED, 4 * ALIGN - FIXED,
                     "{'descr': '%s', 'fortran_order': False, 'shape': (%" PRId64 ",", descr,
                     t->shape[0]);
    for (int i = 1; i < t->ndim; i++)
        n += snprintf(text + FIXED + n, (size_t)(4 * ALIGN - FIXED - n), " %" PRId64 "%s",
                      t->shape[i], i + 1 < t->ndim ? "," : "");
    n += snprintf(text + FIXED + n, (size_t)(4 * ALIGN - FIXED - n), "), }");
    /* Pad with spaces, and a newline at the end. */
    size_t used = (size_t)n + FIXED, whole = (used + 1 + ALIGN - 1) / ALIGN * ALIGN;
    memset(text + used, ' ', whole - used);
    text[whole - 1] = '\n';
    memcpy(text, magic, sizeof magic);
    text[6] = 1;
    text[7] = 0;
    text[8] = (char)((whole - FIXED) & 0xff);
    text[9] = (char)((whole - FIXED) >> 8);
    return whole;
}

/* Refuse a tensor that the format cannot hold, and count its bytes. */
static nsa_status check_writable(const char *path, const nsa_tensor *t, size_t *bytes) {
    int64_t count = t->ndim >= 1 ? nsa_count(t) : -1, total;
    if (count < 0 || !nsa_dtype_size(t->dtype) ||
        __builtin_mul_overflow(count, (int64_t)nsa_dtype_size(t->dtype), &total))
        return nsa_fail(NSA_ERR_INPUT, "%s: a tensor of type %d with %d dimensions is no .npy file",
                        npy_label(path), (int)t->dtype, t->ndim);
    if (count && !t->data)
        return nsa_fail(NSA_ERR_INPUT, "%s: the tensor has no data", npy_label(path));
    *bytes = (size_t)total;
    return NSA_OK;
}

nsa_status npy_write(const char *path, const nsa_tensor *t) {
    char header[4 * ALIGN];
    const char *descr = NULL;
    size_t bytes = 0;
    nsa_status status = check_writable(path, t, &bytes);
    if (status)
        return status;
    for (int i = 0; i < TYPES; i++)
        descr = types[i].dtype == t->dtype ? types[i].descr : descr;
    size_t length = make_header(t, descr, header);
    FILE *file = fopen(path, "wb");
    if (!file)
        return nsa_fail(NSA_ERR_IO, "%s: %s", npy_label(path), strerror(errno));
    struct stat st;
    int is_regular = !fstat(fileno(file), &st) && S_ISREG(st.st_mode); /* never unlink a device */
    /* Keep the first error: fclose() may change errno. */
    int ok = fwrite(header, 1, length, file) == length;
    ok = ok && (!bytes || fwrite(t->data, 1, bytes, file) == bytes);
    ok = ok && !fflush(file); /* a full disk often shows only here */
    int why = errno;
    if (fclose(file) && ok) {
        ok = 0;
        why = errno;
    }
    if (ok)
        return NSA_OK;
    if (is_regular)
        unlink(path);
    return nsa_fail(NSA_ERR_IO, "%s: cannot write: %s", npy_label(path), strerror(why));
}
