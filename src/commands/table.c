/* Every command, one line each. */
#include "commands/command.h"
#include "commands/commands.h"

const struct command *const command_table[] = {
    NULL,
};
