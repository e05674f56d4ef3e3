/* See attention_page.h. */
#include "report/attention_page.h"

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "report/attention_codes.h"

#include <stdlib.h>
#include <string.h>

/* Made from the files of these names. */
extern const unsigned char attention_page_html[], attention_page_css[], attention_page_js[];
extern const size_t attention_page_html_bytes, attention_page_css_bytes, attention_page_js_bytes;

/* Pairs of tokens that make a page of about ten million bytes. */
enum { PAIRS_MOST = 10000000 };

struct page_work {
    const struct attention_page *page;
    int64_t count;                          /* shown layers */
    struct attention_codes *own, *teachers; /* [count] */
    struct attention_codes *now;            /* which of them is filled */
    int64_t filled;                         /* layers of it */
    struct log_progress progress;
    int64_t done;
};

static enum status take_layer(void *user, const struct layer_weights *weights) {
    struct page_work *w = user;
    if (w->page->layers[weights->layer]) TRY(attention_codes_take(weights, &w->now[w->filled++]));
    log_progress_show(&w->progress, ++w->done, "layers");
    return STATUS_OK;
}

static enum status run_model(struct page_work *w, struct model *model, const int32_t *start,
                             struct attention_codes *codes) {
    const struct batch batch = {.batch = 1, .length = w->page->length, .ids = w->page->ids, .start = start};
    w->now = codes;
    w->filled = 0;
    return model_weights(model, &batch, take_layer, w);
}

static enum status run_models(struct page_work *w) {
    const struct attention_page *p = w->page;
    const int64_t layers = p->model->config.layers;
    int32_t *start = NULL;
    enum status status;
    TRY_GOTO(done, memory_new((size_t)p->length, sizeof *start, "documents", &start));
    TRY_GOTO(done, memory_new((size_t)w->count, sizeof *w->own, "attention weights", &w->own));
    TRY_GOTO(done, memory_new((size_t)w->count, sizeof *w->teachers, "attention weights", &w->teachers));
    log_progress_start(&w->progress, "attention", 0, p->teacher ? 2 * layers : layers);
    TRY_GOTO(done, run_model(w, p->model, start, w->own));
    if (p->teacher) TRY_GOTO(done, run_model(w, p->teacher, start, w->teachers));
    for (int64_t n = 0; n < w->count && p->teacher; n++)
        TRY_GOTO(done, attention_codes_compare(&w->own[n], &w->teachers[n]));
    log_progress_end(&w->progress, w->done, "layers");
done:
    free(start);
    return status;
}

static enum status check(const struct attention_page *p) {
    const struct model_config *own = &p->model->config, *teacher = p->teacher ? &p->teacher->config : own;
    if (own->layers != teacher->layers || own->heads != teacher->heads)
        return error_set(STATUS_USAGE, "%s: expected %lld layers of %lld heads as in %s, found %lld of %lld",
                         p->teacher_name, (long long)own->layers, (long long)own->heads, p->name,
                         (long long)teacher->layers, (long long)teacher->heads);
    if (!own->causal || !teacher->causal)
        return error_set(STATUS_USAGE,
                         "%s: expected a model whose tokens read earlier ones, found one that reads in both directions",
                         p->name);
    return STATUS_OK;
}

static enum status gather_facts(const struct page_work *w, struct attention_facts *facts) {
    const struct attention_page *p = w->page;
    const double share = 1 / (double)w->count;
    TRY(memory_new((size_t)w->count, sizeof *facts->layers, "layers", &facts->layers));
    facts->hit_rate = p->teacher ? 0 : -1;
    for (int64_t l = 0; l < p->model->config.layers; l++) {
        if (!p->layers[l]) continue;
        const struct attention_codes *codes = &w->own[facts->layer_count];
        facts->layers[facts->layer_count++] = (struct attention_layer_facts){l,
                                                                             p->model->layers[l].kind->name,
                                                                             codes->density,
                                                                             codes->summaries,
                                                                             p->teacher ? codes->hit_mean : -1,
                                                                             p->teacher ? codes->common_mean : -1};
        facts->density += share * codes->density;
        if (p->teacher) facts->hit_rate += share * codes->hit_mean;
    }
    return STATUS_OK;
}

/* --- the data ----------------------------------------------------------------------------------------------------- */

static void add_tokens(const struct attention_page *p, struct page_text *out) {
    struct page_text bytes = {0};
    for (int64_t n = 0; n < p->length; n++) page_text_add(&bytes, p->tokens[n].bytes, p->tokens[n].length);
    if (out->status == STATUS_OK) out->status = bytes.status;
    page_text_print(out, "\"bytes\":\"");
    page_text_base64(out, bytes.bytes, bytes.count);
    page_text_print(out, "\",\"lengths\":[");
    for (int64_t n = 0; n < p->length; n++) page_text_print(out, n > 0 ? ",%zu" : "%zu", p->tokens[n].length);
    page_text_print(out, "],\"special\":[");
    for (int64_t n = 0, any = 0; n < p->length; n++) {
        if (p->tokens[n].special) page_text_print(out, any++ ? ",%lld" : "%lld", (long long)n);
    }
    page_text_print(out, "]");
    page_text_free(&bytes);
}

static void add_panel(const struct page_work *w, const struct attention_codes *codes, const char *role,
                      const char *name, const struct attention_facts *facts, struct page_text *out) {
    const struct attention_keep keep = {facts->kept_mean, facts->kept};
    page_text_print(out, "{\"role\":\"%s\",\"name\":", role);
    page_text_string(out, name);
    page_text_print(out, ",\"layers\":[");
    for (int64_t n = 0; n < w->count; n++) {
        struct page_text packed = {0};
        attention_codes_pack(&codes[n], &keep, &packed);
        if (out->status == STATUS_OK) out->status = packed.status;
        page_text_print(out, "%s\n{\"scale\":%.9g,\"flagged\":%s,\"compared\":%s,\"density\":%.5f,\"data\":\"",
                        n > 0 ? "," : "", codes[n].scale, codes[n].flagged ? "true" : "false",
                        codes[n].hit ? "true" : "false", codes[n].density);
        page_text_deflated(out, packed.bytes, packed.count);
        page_text_print(out, "\"}");
        page_text_free(&packed);
    }
    page_text_print(out, "]}");
}

static void add_data(const struct page_work *w, const struct attention_facts *facts, struct page_text *out) {
    const struct attention_page *p = w->page;
    page_text_print(out,
                    "{\"tokens\":%lld,\"heads\":%lld,\"kept\":%lld,\"keptMean\":%lld,\"density\":%.5f,\"hit\":%.5f,",
                    (long long)p->length, (long long)p->model->config.heads, (long long)facts->kept,
                    (long long)facts->kept_mean, facts->density, facts->hit_rate);
    page_text_print(out, "\"layers\":[");
    for (int64_t n = 0; n < facts->layer_count; n++) {
        const struct attention_layer_facts *layer = &facts->layers[n];
        page_text_print(
            out, "%s{\"layer\":%lld,\"kind\":\"%s\",\"density\":%.5f,\"summaries\":%.5f,\"hit\":%.5f,\"common\":%.5f}",
            n > 0 ? "," : "", (long long)layer->layer, layer->kind, layer->density, layer->summaries, layer->hit_rate,
            layer->common);
    }
    page_text_print(out, "],");
    add_tokens(p, out);
    page_text_print(out, ",\"panels\":[");
    add_panel(w, w->own, p->teacher ? "student" : "model", p->name, facts, out);
    if (p->teacher) {
        page_text_print(out, ",");
        add_panel(w, w->teachers, "teacher", p->teacher_name, facts, out);
    }
    page_text_print(out, "]}");
}

/* Appends the template up to `place`, which it has once; *at: from where, then behind the place. */
static void add_before(const char *place, size_t *at, struct page_text *out) {
    const char *from = (const char *)attention_page_html + *at;
    const char *found = memmem(from, attention_page_html_bytes - *at, place, strlen(place));
    if (!found) {
        if (out->status == STATUS_OK)
            out->status = error_set(STATUS_FAILED, "attention_page.html: expected %s in it", place);
        return;
    }
    page_text_add(out, from, (size_t)(found - from));
    *at += (size_t)(found - from) + strlen(place);
}

static enum status write_page(const struct page_work *w, const char *path, struct attention_facts *facts) {
    struct page_text out = {0};
    size_t at = 0;
    add_before("@STYLE@", &at, &out);
    page_text_add(&out, attention_page_css, attention_page_css_bytes);
    add_before("@DATA@", &at, &out);
    add_data(w, facts, &out);
    add_before("@SCRIPT@", &at, &out);
    page_text_add(&out, attention_page_js, attention_page_js_bytes);
    page_text_add(&out, attention_page_html + at, attention_page_html_bytes - at);
    enum status status = out.status == STATUS_OK ? file_write(path, out.bytes, out.count) : out.status;
    facts->bytes = (int64_t)out.count;
    page_text_free(&out);
    return status;
}

enum status attention_page_write(const struct attention_page *page, const char *path, struct attention_facts *facts) {
    struct page_work w = {.page = page};
    enum status status;
    *facts = (struct attention_facts){0};
    TRY(check(page));
    for (int64_t l = 0; l < page->model->config.layers; l++) w.count += page->layers[l];
    const struct attention_keep keep =
        attention_keep_within(PAIRS_MOST, page->length, page->model->config.heads, w.count, page->teacher ? 2 : 1);
    facts->kept = keep.head < page->length ? keep.head : page->length;
    facts->kept_mean = keep.mean < page->length ? keep.mean : page->length;
    TRY_GOTO(done, run_models(&w));
    TRY_GOTO(done, gather_facts(&w, facts));
    status = write_page(&w, path, facts);
done:
    for (int64_t n = 0; n < w.count; n++) {
        if (w.own) attention_codes_free(&w.own[n]);
        if (w.teachers) attention_codes_free(&w.teachers[n]);
    }
    free(w.own);
    free(w.teachers);
    return status;
}

void attention_facts_free(struct attention_facts *facts) {
    free(facts->layers);
    facts->layers = NULL;
    facts->layer_count = 0;
}
