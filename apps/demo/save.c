/** @file save.c
 *  @brief Writing files atomically. */
#include "demo/save.h"
#include "commands.h"
#include "on_signal.h"

#include <errno.h>
#include <spawn.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char who[] = "nsa demo";

static char half_done[PATH_MAX]; /* what to remove on a signal */

static void remove_half_done(void) {
    unlink(half_done);
}

/* From now on a signal removes no file. */
static void unguard(void) {
    on_signal(NULL);
}

/* From now on a signal removes this file. */
static void guard(const char *partial) {
    unguard();
    snprintf(half_done, sizeof half_done, "%s", partial);
    on_signal(remove_half_done);
}

int demo_make_folder(const char *dir) {
    struct stat info;
    if (mkdir(dir, 0777) && errno != EEXIST)
        return command_error(EXIT_USAGE, who, "cannot make the folder %s: %s", dir,
                             strerror(errno));
    if (stat(dir, &info) || !S_ISDIR(info.st_mode))
        return command_error(EXIT_USAGE, who, "%s is no folder, expected one for the pictures",
                             dir);
    if (access(dir, W_OK | X_OK))
        return command_error(EXIT_USAGE, who, "cannot write in %s: %s", dir, strerror(errno));
    return EXIT_DONE;
}

static int name_paths(const char *dir, const char *name, demo_file *file) {
    int n = snprintf(file->path, sizeof file->path, "%s/%s", dir, name);
    int m = snprintf(file->partial, sizeof file->partial, "%s/%s.partial", dir, name);
    if (n < 0 || m < 0 || (size_t)m >= sizeof file->partial)
        return command_error(EXIT_USAGE, who, "the name of the folder is too long: %.40s...", dir);
    return EXIT_DONE;
}

int demo_file_start(const char *dir, const char *name, demo_file *file) {
    int code = name_paths(dir, name, file);
    if (code)
        return code;
    guard(file->partial);
    file->out = fopen(file->partial, "w");
    if (file->out)
        return EXIT_DONE;
    unguard();
    return command_error(EXIT_USAGE, who, "cannot write %s: %s", file->path, strerror(errno));
}

int demo_file_done(demo_file *file) {
    /* A full disk may show only when the last bytes are flushed, so check each step. */
    int bad = ferror(file->out), number = errno;
    if (fclose(file->out) && !bad) {
        bad = 1;
        number = errno;
    }
    if (!bad && rename(file->partial, file->path)) {
        bad = 1;
        number = errno;
    }
    if (bad)
        unlink(file->partial);
    unguard();
    if (!bad)
        return EXIT_DONE;
    return command_error(EXIT_FAILED, who, "writing %s failed: %s", file->path, strerror(number));
}

int demo_draw_png(const char *dir, const char *svg, const char *png, int *made) {
    demo_file file;
    char source[PATH_MAX];
    *made = 0;
    int code = name_paths(dir, png, &file);
    if (code)
        return code;
    snprintf(source, sizeof source, "%s/%s", dir, svg);
    /* Without a shell, because folder names may contain anything; "--" allows a leading '-'. */
    char *arguments[] = {"rsvg-convert", "--zoom=2", "--format=png", "--output",
                         file.partial,   "--",       source,         NULL};
    pid_t child;
    int status, number = posix_spawnp(&child, arguments[0], NULL, NULL, arguments, environ);
    if (number == ENOENT)
        return EXIT_DONE;
    if (number)
        return command_error(EXIT_FAILED, who, "cannot start rsvg-convert: %s", strerror(number));
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            return command_error(EXIT_FAILED, who, "rsvg-convert was lost: %s", strerror(errno));
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !rename(file.partial, file.path)) {
        *made = 1;
        return EXIT_DONE;
    }
    unlink(file.partial);
    return command_error(EXIT_FAILED, who, "rsvg-convert could not write %s", file.path);
}
