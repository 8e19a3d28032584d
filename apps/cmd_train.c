/** @file cmd_train.c
 *  @brief `nsa train`: start the program nsa-train, which stands beside this one. */
#include "commands.h"

int cmd_train(int argc, char **argv) {
    (void)argc;
    return command_start("nsa-train", argv);
}
