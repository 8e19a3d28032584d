/** @file commands.c
 *  @brief Shared by the subcommands: one-line errors and option parsing. */
#include "commands.h"
#include "io/text.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int command_error(exit_code code, const char *who, const char *format, ...) {
    char text[1024], shown[4 * sizeof text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* A file name may contain a newline or an escape sequence; an error line must not. */
    fprintf(stderr, "%s: %s\n", who, text_show(shown, sizeof shown, text, strlen(text)));
    return code;
}

int command_status(nsa_status status, const char *who) {
    int is_usage_error =
        status == NSA_ERR_CONFIG || status == NSA_ERR_INPUT || status == NSA_ERR_IO;
    return command_error(is_usage_error ? EXIT_USAGE : EXIT_FAILED, who, "%s", nsa_last_error());
}

int command_start(const char *program, char **argv) {
    char path[PATH_MAX + 32];
    const ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    char *slash = strrchr(path, '/');
    if (slash)
        snprintf(slash + 1, 32, "%s", program);
    execv(path, argv); /* returns only if it failed */
    return command_error(EXIT_USAGE, argv[0], "cannot start %s: %s", path, strerror(errno));
}

int command_main(int argc, char **argv, char *name, int (*run)(int argc, char **argv)) {
    signal(SIGXFSZ, SIG_IGN); /* at a file-size limit write() shall fail instead */
    argp_program_version = "nsa 0.1";
    argp_err_exit_status = EXIT_USAGE;
    if (argc < 1)
        return command_error(EXIT_USAGE, name, "started without even its own name");
    argv[0] = name;
    const int code = run(argc, argv);
    /* Only here a full disk behind `nsa list > file` is detected. */
    if ((fflush(stdout) || ferror(stdout)) && !code)
        return command_error(EXIT_FAILED, name, "cannot write standard output: %s",
                             strerror(errno));
    return code;
}

int command_parse(const struct argp *argp, unsigned flags, int argc, char **argv, int *end,
                  void *input) {
    return argp_parse(argp, argc, argv, flags, end, input) ? EXIT_USAGE : EXIT_DONE;
}

error_t command_key(int key, const char *arg, struct argp_state *state) {
    switch (key) {
    case ARGP_KEY_INIT:
        /* getopt prints its own error; this keeps argp from adding a second line. */
        state->err_stream = NULL;
        return 0;
    case ARGP_KEY_ARG:
        command_error(EXIT_USAGE, state->name, "unexpected argument \"%s\"", arg);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}
