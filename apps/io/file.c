/** @file file.c
 *  @brief Open regular files only: the type is checked before opening, and again afterwards, for
 * the file may have been replaced. */
#include "io/file.h"
#include "io/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static nsa_status irregular(const char *path, mode_t mode) {
    const char *what = S_ISDIR(mode)    ? "a folder"
                       : S_ISFIFO(mode) ? "a pipe"
                       : S_ISSOCK(mode) ? "a socket"
                                        : "a device";
    return nsa_fail(NSA_ERR_IO, "%s: %s, expected a regular file", npy_label(path), what);
}

nsa_status file_open(const char *path, int *fd, struct stat *st) {
    *fd = -1;
    if (!stat(path, st) && !S_ISREG(st->st_mode)) /* opening a device may have side effects */
        return irregular(path, st->st_mode);
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    nsa_status status = NSA_OK;
    if (*fd < 0 || fstat(*fd, st))
        status = nsa_fail(NSA_ERR_IO, "%s: %s", npy_label(path), strerror(errno));
    else if (!S_ISREG(st->st_mode))
        status = irregular(path, st->st_mode);
    if (status && *fd >= 0)
        close(*fd);
    *fd = status ? -1 : *fd;
    return status;
}

nsa_status file_stream(const char *path, FILE **file) {
    struct stat st;
    int fd;
    nsa_status status = file_open(path, &fd, &st);
    *file = status ? NULL : fdopen(fd, "rb");
    if (!status && !*file) {
        close(fd);
        status = nsa_fail(NSA_ERR_IO, "%s: %s", npy_label(path), strerror(errno));
    }
    return status;
}

nsa_status file_read(const char *path, size_t max, char **text, size_t *n) {
    FILE *file;
    *n = 0;
    *text = NULL;
    nsa_status status = file_stream(path, &file);
    if (status)
        return status;
    *text = malloc(max);
    if (!*text)
        status = nsa_fail(NSA_ERR_MEMORY, "%s: no memory for it", npy_label(path));
    else
        *n = fread(*text, 1, max, file);
    if (ferror(file))
        status = nsa_fail(NSA_ERR_IO, "%s: cannot read: %s", npy_label(path), strerror(errno));
    fclose(file);
    if (status) {
        free(*text);
        *text = NULL;
    }
    return status;
}

nsa_status file_replace(const char *path, const char *text) {
    char temporary[4096];
    int length = snprintf(temporary, sizeof temporary, "%s.part", path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return nsa_fail(NSA_ERR_IO, "%.100s...: the name is too long", path);
    FILE *f = fopen(temporary, "w");
    if (!f)
        return nsa_fail(NSA_ERR_IO, "%s: %s", temporary, strerror(errno));
    int bad = fputs(text, f) == EOF || fputc('\n', f) == EOF;
    bad |= fclose(f) != 0;
    if (bad || rename(temporary, path)) {
        nsa_status status = nsa_fail(NSA_ERR_IO, "%s: %s", path, strerror(errno));
        remove(temporary);
        return status;
    }
    return NSA_OK;
}
