/** @file cmd_bench.c
 *  @brief `nsa bench`: start the program nsa-bench, which stands beside this one. */
#include "commands.h"

int cmd_bench(int argc, char **argv) {
    (void)argc;
    return command_start("nsa-bench", argv);
}
