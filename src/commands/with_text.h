/* What the commands that give a model a text share: its tokenizer, and the text's ids. */
#ifndef SQUINT_COMMANDS_WITH_TEXT_H
#define SQUINT_COMMANDS_WITH_TEXT_H

#include "data-prep/tokenizer.h"
#include "eval/loaded_model.h"

/* The tokenizer in `directory` (--tokenizer), or, NULL, that of the model. STATUS_USAGE when there is none, or its
 * vocabulary is larger than the model's. */
enum status with_text_tokenizer(const char *command, const char *directory, const struct loaded_model *loaded,
                                struct tokenizer **tokenizer);
/* Appends the text's ids, behind the begin-of-text id where the model has one of its own or there is no text; *begins:
 * it is there. STATUS_USAGE names `option`: nothing at all to begin with. */
enum status with_text_encode(const char *command, const char *option, const struct model_config *model,
                             const struct tokenizer *tokenizer, const char *text, size_t length,
                             struct token_buffer *ids, bool *begins);

#endif
