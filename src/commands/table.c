/* Every command, one line each. */
#include "commands/command.h"
#include "commands/commands.h"

const struct command *const command_table[] = {
    &command_prep,      &command_corpus,
    &command_tokenizer, &command_train,
    &command_plan,      &command_eval,
    &command_generate,  &command_logits,
    &command_inspect,   &command_allocate,
    &command_export,    &command_bench,
    &command_doctor,    NULL,
};
