/** @file cmd_bench.c
 *  @brief `nsa bench`: start the program nsa-bench, which stands beside this one. */
#include "commands.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int cmd_bench(int argc, char **argv) {
    static const char name[] = "/nsa-bench";
    char path[PATH_MAX + sizeof name];
    const ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    (void)argc;
    path[length > 0 ? length : 0] = 0;
    char *slash = strrchr(path, '/');
    if (slash)
        snprintf(slash, sizeof name, "%s", name);
    execv(path, argv); /* returns only if it failed */
    return command_error(EXIT_USAGE, argv[0], "cannot start %s: %s", path, strerror(errno));
}
