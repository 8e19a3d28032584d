/**
 * @file commands.h
 * @brief The subcommands of `nsa`, and what they share: one-line errors, exit codes, option
 * parsing.
 *
 * Exit codes: 0 done, 1 the work failed (a check did not hold, the disk is full), 2 the command
 * line or an input is wrong.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "nsa.h"

#include <argp.h>

/** What `nsa` ends with. */
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

/** `nsa demo`: a text through every stage, and a map of the blocks chosen.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa demo"
 *  @return an exit_code */
int cmd_demo(int argc, char **argv);

/** `nsa bench`: check stages, then time them.
 *  @param argc  arguments, argv[0] included
 *  @param argv  argv[0] is "nsa bench"
 *  @return an exit_code */
int cmd_bench(int argc, char **argv);

/** Print one line "who: text" on standard error; bytes that are no printable text become \\xNN, so
 * that it stays one line whatever a file is called.
 *  @param code    handed back
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

/** Keys that every parser handles alike: the start of parsing, and arguments without an option.
 *  @param key    of the parser
 *  @param arg    of the parser
 *  @param state  of the parser
 *  @return for argp */
error_t command_key(int key, const char *arg, struct argp_state *state);

#endif
