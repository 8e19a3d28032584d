/** @file records.c
 *  @brief The file of trials and their outcomes. */
#include "records.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static const char variable[] = "NSA_JUDGE_RECORDS";
static int file = -1;

static int open_records(void) {
    const char *path = getenv(variable);
    if (file < 0 && path)
        file = open(path, O_RDWR | O_CLOEXEC);
    return file;
}

int records_put(size_t number, const record *r) {
    const off_t at = (off_t)(number * sizeof *r);
    return open_records() >= 0 && pwrite(file, r, sizeof *r, at) == (ssize_t)sizeof *r ? 0 : -1;
}

int records_get(size_t number, record *r) {
    const off_t at = (off_t)(number * sizeof *r);
    return open_records() >= 0 && pread(file, r, sizeof *r, at) == (ssize_t)sizeof *r ? 0 : -1;
}

int records_create(const record *list, size_t count) {
    char path[4096];
    const char *dir = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/nsa-judge-XXXXXX", dir && *dir ? dir : "/tmp");
    file = mkstemp(path);
    if (file < 0 || setenv(variable, path, 1))
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (records_put(i, &list[i]))
            return -1;
    }
    return 0;
}

void records_remove(void) {
    const char *path = getenv(variable);
    if (path)
        unlink(path);
}
