/** @file main.c
 *  @brief `nsa SUBCOMMAND ...`: find the subcommand and pass it the remaining arguments. */
#include "commands.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/** A subcommand by name. */
typedef struct command {
    const char *name;                  /**< as the user types it */
    const char *prefix;                /**< its argv[0], the prefix of its errors */
    int (*run)(int argc, char **argv); /**< returns an exit_code */
} command;

/* To add a subcommand: a line here, a line in `doc`, and cmd_NAME.c. */
static const command commands[] = {
    {"list", "nsa list", cmd_list},    {"run", "nsa run", cmd_run},
    {"check", "nsa check", cmd_check}, {"demo", "nsa demo", cmd_demo},
    {"bench", "nsa bench", cmd_bench}, {"train", "nsa train", cmd_train}};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const char doc[] =
    "Native Sparse Attention (arXiv:2502.11089), one idea a stage."
    "\v"
    "  list   the stages, and which of them run here\n"
    "  run    a folder of .npy files through one stage, results as .npy files\n"
    "  check  judge stages against the specification\n"
    "  demo   run every stage on a text, and draw the selected blocks\n"
    "  bench  check stages, then time them\n"
    "  train  train a small model with a stage as its attention\n"
    "\n"
    "`nsa SUBCOMMAND --help` lists the options of one. "
    "Exit codes: 0 done, 1 the work failed, 2 wrong usage or input.";

/** The position of the subcommand in argv; 0 until it is found. */
typedef struct subcommand {
    int index; /**< index in argv */
} subcommand;

/* Options of `nsa` itself end at the first argument that is no option. */
static error_t parse(int key, char *arg, struct argp_state *state) {
    subcommand *found = state->input;
    if (key == ARGP_KEY_ARG) {
        found->index = state->next - 1;
        state->next = state->argc; /* the rest is for the subcommand */
        return 0;
    }
    if (key == ARGP_KEY_NO_ARGS) {
        command_error(
            EXIT_USAGE, state->name,
            "no subcommand: expected one of list, run, check, demo, bench, train; see nsa --help");
        return EINVAL;
    }
    return command_key(key, arg, state);
}

/* argv[0] is the subcommand's name; replace it by the prefix of its errors. */
static int dispatch(int argc, char **argv) {
    for (int i = 0; i < COMMANDS; i++) {
        if (!strcmp(argv[0], commands[i].name)) {
            char prefix[32];
            snprintf(prefix, sizeof prefix, "%s", commands[i].prefix);
            argv[0] = prefix;
            return commands[i].run(argc, argv);
        }
    }
    return command_error(
        EXIT_USAGE, "nsa",
        "unknown subcommand \"%s\": expected one of list, run, check, demo, bench, train", argv[0]);
}

static int run(int argc, char **argv) {
    static const struct argp argp = {
        .parser = parse, .args_doc = "SUBCOMMAND [OPTION...]", .doc = doc};
    subcommand found = {0};
    int code = command_parse(&argp, ARGP_IN_ORDER, argc, argv, NULL, &found);
    return code ? code : dispatch(argc - found.index, argv + found.index);
}

int main(int argc, char **argv) {
    char name[] = "nsa";
    return command_main(argc, argv, name, run);
}
