/* One self-contained HTML page: which earlier tokens each layer of a model reads in a text, beside its teacher's. Its
 * looks and its script are attention_page.{html,css,js}, which the build turns into arrays (cmake/embed.cmake); this
 * file fills in the data. */
#ifndef SQUINT_REPORT_ATTENTION_PAGE_H
#define SQUINT_REPORT_ATTENTION_PAGE_H

#include "model/model.h"

struct attention_token {
    const char *bytes; /* as it stands inside a text: any bytes, also part of a UTF-8 character */
    size_t length;
    bool special; /* bytes are a name, such as <s> */
};

struct attention_page {
    const char *name, *teacher_name;      /* as people know the models */
    struct model *model, *teacher;        /* teacher NULL: one panel */
    const int32_t *ids;                   /* [T] */
    const struct attention_token *tokens; /* [T] */
    int64_t length;                       /* T, at most ATTENTION_TOKENS_MAX */
    const bool *layers;                   /* [L]: those that the page shows; at least one */
};

struct attention_layer_facts {
    int64_t layer;
    const char *kind;
    double density;          /* pairs of tokens that are read themselves / causal pairs, in this text, all heads */
    double summaries;        /* that are read in summaries alone */
    double hit_rate, common; /* see struct attention_codes; negative without a teacher */
};
struct attention_facts {
    struct attention_layer_facts *layers;
    int64_t layer_count;
    double density, hit_rate; /* means over the layers; hit_rate negative without a teacher */
    int64_t kept, kept_mean;  /* pairs that the page keeps of a query, of a head and of the mean over heads; T: all */
    int64_t bytes;            /* of the page */
};

/* Runs the models on the text and publishes the page at `path`. facts: released with attention_facts_free, in any case.
 * STATUS_USAGE when the models' layers or heads differ, or a model reads in both directions; else as model_weights and
 * file_write. */
enum status attention_page_write(const struct attention_page *page, const char *path, struct attention_facts *facts);
void attention_facts_free(struct attention_facts *facts);

#endif
