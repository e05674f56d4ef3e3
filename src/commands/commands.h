/* The commands' declarations, one line a file of this folder. */
#ifndef SQUINT_COMMANDS_COMMANDS_H
#define SQUINT_COMMANDS_COMMANDS_H

#include "commands/command.h"

#endif
