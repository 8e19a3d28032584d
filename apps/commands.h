/**
 * @file commands.h
 * @brief The subcommands of `nsa`, and shared functions: one-line errors, exit codes, option
 * parsing.
 *
 * Exit codes: 0 done, 1 the work failed (a check did not hold, the disk is full), 2 the command
 * line or an input is wrong.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "nsa_stage.h"

#include <argp.h>

/** Exit codes of `nsa`. */
typedef enum exit_code {
    EXIT_DONE = 0,   /**< done */
    EXIT_FAILED = 1, /**< the work failed */
    EXIT_USAGE = 2   /**< usage or bad input */
} exit_code;

/** `nsa list`: the stages, and whether this machine runs them.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa list", the prefix of errors
 *  @return an exit_code */
int cmd_list(int argc, char **argv);

/** `nsa run`: a case folder through one stage, results as .npy.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa run"
 *  @return an exit_code */
int cmd_run(int argc, char **argv);

/** `nsa check`: judge stages against the oracle.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa check"
 *  @return an exit_code */
int cmd_check(int argc, char **argv);

/** `nsa demo`: run every stage on a text, and draw the selected blocks.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa demo"
 *  @return an exit_code */
int cmd_demo(int argc, char **argv);

/** `nsa bench`: start nsa-bench, which checks stages, then times them. Returns only on an error.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa bench"
 *  @return an exit_code */
int cmd_bench(int argc, char **argv);

/** `nsa train`: start nsa-train, which trains a small model. Returns only on an error.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa train"
 *  @return an exit_code */
int cmd_train(int argc, char **argv);

/** Start a program that stands beside this one, in its place. Returns only on an error.
 *  @param program  its file's name
 *  @param argv     its arguments, argv[0] the prefix of errors
 *  @return an exit_code */
int command_start(const char *program, char **argv);

/** Print one line "who: text" on standard error; unprintable bytes become \\xNN, so that it stays
 * one line whatever a file is called.
 *  @param code    returned
 *  @param who     "nsa" or "nsa run"
 *  @param format  printf style
 *  @return `code`, for `return command_error(...)` */
int command_error(exit_code code, const char *who, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** Print nsa_last_error() as command_error() does.
 *  @param status  what failed
 *  @param who     "nsa" or "nsa run"
 *  @return EXIT_USAGE for a bad config, input or file, else EXIT_FAILED */
int command_status(nsa_status status, const char *who);

/** What main() of a program does: run `run` as `name`, and detect a full disk behind its output.
 *  @param argc  of main()
 *  @param argv  of main(); argv[0] becomes `name`, the prefix of errors, however it was started
 *  @param name  "nsa" or "nsa bench"
 *  @param run   returns an exit_code
 *  @return the exit code */
int command_main(int argc, char **argv, char *name, int (*run)(int argc, char **argv));

/** argp_parse() with errors on one line. A parser reports its own errors by command_error() and
 * returns EINVAL; it passes every key it does not know to command_key().
 *  @param argp   the options
 *  @param flags  of argp_parse()
 *  @param argc   arguments, argv[0] included
 *  @param argv   argv[0] is the prefix of errors
 *  @param end    where parsing stopped, or NULL
 *  @param input  of argp_parse()
 *  @return EXIT_DONE or EXIT_USAGE; --help and --version do not return */
int command_parse(const struct argp *argp, unsigned flags, int argc, char **argv, int *end,
                  void *input);

/** Handle keys common to all parsers: the start of parsing, and unexpected arguments.
 *  @param key    of the parser
 *  @param arg    of the parser
 *  @param state  of the parser
 *  @return for argp */
error_t command_key(int key, const char *arg, struct argp_state *state);

#endif
