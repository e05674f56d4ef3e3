/* See inspect_attention.h. */
#include "commands/inspect_attention.h"

#include "base/log.h"
#include "base/memory.h"
#include "commands/input.h"
#include "commands/with_text.h"
#include "report/attention_page.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_UNASKED = 512 };

/* A text made ready: ids, and what each stands for. */
struct text_tokens {
    struct token_buffer ids;
    struct attention_token *tokens; /* [ids.count] */
};

static void free_tokens(struct text_tokens *t) {
    for (size_t n = 0; t->tokens && n < t->ids.count; n++) free((char *)t->tokens[n].bytes);
    free(t->tokens);
    token_buffer_free(&t->ids);
}

/* --- options ------------------------------------------------------------------------------------------------------ */

static enum status check(const struct inspect_attention *o) {
    if (!o->out)
        return error_set(STATUS_USAGE, "inspect: --out: expected the page's name, such as page.html, found none");
    if (!o->model.model)
        return error_set(STATUS_USAGE, "inspect: --model: expected a model, found none; see squint inspect --help");
    if (o->text[0] == '@' && o->text[1] == '\0')
        return error_set(STATUS_USAGE, "inspect: --attention: expected a file's name behind the @, found none");
    return STATUS_OK;
}

static enum status wrong_layers(const char *word, int64_t count) {
    return error_set(STATUS_USAGE,
                     "inspect: --layers: expected all, a layer from 0 to %lld, or FIRST-LAST, found \"%s\"",
                     (long long)count - 1, word);
}

/* One word as recipes have it: "all", "3", "3-5", "3-" (to the last). */
static enum status choose_layers(const char *word, int64_t count, bool *layers) {
    char *end = NULL;
    long long first = 0, last = count - 1;
    errno = 0;
    if (strcmp(word, "all") != 0) {
        if (word[0] < '0' || word[0] > '9') return wrong_layers(word, count);
        first = strtoll(word, &end, 10);
        if (*end == '\0')
            last = first;
        else if (*end != '-')
            return wrong_layers(word, count);
        else if (end[1] >= '0' && end[1] <= '9')
            last = strtoll(end + 1, &end, 10);
        else
            end++;
        if (*end != '\0' || errno != 0 || last < first || last >= count) return wrong_layers(word, count);
    }
    for (long long l = first; l <= last; l++) layers[l] = true;
    return STATUS_OK;
}

static enum status read_layers(const struct inspect_attention *o, int64_t count, bool **layers) {
    TRY(memory_new((size_t)count, sizeof **layers, "layers", layers));
    if (o->layers.count == 0) return choose_layers("all", count, *layers);
    for (size_t n = 0; n < o->layers.count; n++) TRY(choose_layers(o->layers.values[n], count, *layers));
    return STATUS_OK;
}

/* --- the text ----------------------------------------------------------------------------------------------------- */

/* How many tokens a page shows. A text that is longer is cut, which is said. */
static enum status cut_text(const struct inspect_attention *o, const struct loaded_model *loaded, size_t *count) {
    const struct model_config *model = &loaded->model->config;
    const int64_t positions = model->positions, unasked = positions < LENGTH_UNASKED ? positions : LENGTH_UNASKED;
    const size_t most = (size_t)(o->length > 0 ? o->length : unasked);
    if (model_has_learned_positions(model) && o->length > positions && *count > (size_t)positions)
        return error_set(STATUS_USAGE,
                         "inspect: --length %lld: %s: expected at most its %lld learned positions; shorten it, or "
                         "add --positions interpolate or tile",
                         (long long)o->length, loaded->path, (long long)positions);
    if (*count <= most) return STATUS_OK;
    log_warning("the page shows the text's first %zu of %zu tokens; --length N shows up to 4096", most, *count);
    *count = most;
    return STATUS_OK;
}

static enum status encode_text(const struct inspect_attention *o, const struct loaded_model *loaded,
                               const struct tokenizer *tokenizer, struct text_tokens *t) {
    const struct model_config *model = &loaded->model->config;
    struct input input = {0};
    bool begins = false, file = o->text[0] == '@', in = strcmp(o->text, "-") == 0;
    enum status status = STATUS_OK;
    size_t count;
    if (file || in) {
        TRY_GOTO(done, input_open(file ? o->text + 1 : "-", &input));
    } else {
        input.text = o->text;
        input.length = strlen(o->text);
    }
    if (input.length == 0)
        TRY_GOTO(done, error_set(STATUS_USAGE, "inspect: --attention: %s: expected a text, found an empty one",
                                 file ? o->text + 1
                                 : in ? "standard input"
                                      : "TEXT"));
    TRY_GOTO(done,
             with_text_encode("inspect", "attention", model, tokenizer, input.text, input.length, &t->ids, &begins));
    count = t->ids.count;
    TRY_GOTO(done, cut_text(o, loaded, &count));
    t->ids.count = count;
    TRY_GOTO(done, memory_new(count, sizeof *t->tokens, "tokens", &t->tokens));
    for (size_t n = 0; n < count; n++) {
        char *bytes = NULL;
        size_t length = 0;
        status = tokenizer_decode_one(tokenizer, t->ids.ids[n], &bytes, &length);
        t->tokens[n] = (struct attention_token){bytes, length, begins && n == 0};
        TRY_GOTO(done, status);
    }
done:
    input_close(&input);
    return status;
}

/* --- what is printed ---------------------------------------------------------------------------------------------- */

static void print_json(const char *out, int64_t tokens, const struct attention_facts *facts) {
    json_t *root = json_object(), *layers = json_array();
    json_object_set_new(root, "page", json_string(out));
    json_object_set_new(root, "bytes", json_integer(facts->bytes));
    json_object_set_new(root, "tokens", json_integer(tokens));
    json_object_set_new(root, "density", json_real(facts->density));
    json_object_set_new(root, "hit_rate", facts->hit_rate >= 0 ? json_real(facts->hit_rate) : json_null());
    json_object_set_new(root, "layers", layers);
    for (int64_t n = 0; n < facts->layer_count; n++) {
        const struct attention_layer_facts *layer = &facts->layers[n];
        json_t *line = json_object();
        json_object_set_new(line, "layer", json_integer(layer->layer));
        json_object_set_new(line, "kind", json_string(layer->kind));
        json_object_set_new(line, "density", json_real(layer->density));
        json_object_set_new(line, "in_summaries", json_real(layer->summaries));
        json_object_set_new(line, "hit_rate", layer->hit_rate >= 0 ? json_real(layer->hit_rate) : json_null());
        json_object_set_new(line, "in_common", layer->common >= 0 ? json_real(layer->common) : json_null());
        json_array_append_new(layers, line);
    }
    char *text = json_dumps(root, JSON_REAL_PRECISION(9));
    printf("%s\n", text ? text : "{}");
    free(text);
    json_decref(root);
}

static void print_lines(const char *out, int64_t tokens, const struct attention_facts *facts) {
    char bytes[16];
    bytes_text((double)facts->bytes, bytes);
    printf("layer  kind       pairs read%s\n", facts->hit_rate >= 0 ? "  teacher's attention found" : "");
    for (int64_t n = 0; n < facts->layer_count; n++) {
        const struct attention_layer_facts *layer = &facts->layers[n];
        printf("%5lld  %-9s  %10.3f", (long long)layer->layer, layer->kind, layer->density);
        if (layer->hit_rate >= 0) printf("  %25.3f", layer->hit_rate);
        printf("\n");
    }
    printf("%s  %lld tokens, %s\n", out, (long long)tokens, bytes);
    if (facts->kept < tokens)
        printf("kept of each query and head: its %lld heaviest tokens; of the mean over heads: %lld\n",
               (long long)facts->kept, (long long)facts->kept_mean);
}

/* --- the command -------------------------------------------------------------------------------------------------- */

static enum status make_page(const struct inspect_attention *o, const struct loaded_model *loaded) {
    struct tokenizer *tokenizer = NULL;
    struct text_tokens text = {0};
    struct attention_facts facts = {0};
    bool *layers = NULL;
    enum status status;
    TRY_GOTO(done, read_layers(o, loaded->model->config.layers, &layers));
    TRY_GOTO(done, with_text_tokenizer("inspect", o->tokenizer, loaded, &tokenizer));
    TRY_GOTO(done, encode_text(o, loaded, tokenizer, &text));
    struct attention_page page = {.name = loaded->path,
                                  .teacher_name = loaded->teacher_path,
                                  .model = loaded->model,
                                  .teacher = loaded->teacher,
                                  .ids = (const int32_t *)text.ids.ids,
                                  .tokens = text.tokens,
                                  .length = (int64_t)text.ids.count,
                                  .layers = layers};
    TRY_GOTO(done, attention_page_write(&page, o->out, &facts));
    if (o->json)
        print_json(o->out, page.length, &facts);
    else
        print_lines(o->out, page.length, &facts);
done:
    attention_facts_free(&facts);
    free_tokens(&text);
    tokenizer_close(&tokenizer);
    free(layers);
    return status;
}

enum status inspect_attention_run(const struct inspect_attention *o) {
    struct with_model with;
    TRY(check(o));
    enum status status = with_model_open("inspect", &o->model, false, o->length, &with);
    if (status == STATUS_OK) status = make_page(o, &with.loaded);
    return with_model_close(&with, status);
}
