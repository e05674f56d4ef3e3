/* How a story is told; see corpus.h. The words are in corpus_words.c. */
#include "data-prep/corpus.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data-prep/corpus_words.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { USUAL_FACTS = 8, MOST_SCENE_WORDS = 4, SHORTEST = 550, LONGEST = 7000 };

struct fact { /* one of the story's facts */
    const struct corpus_fact *kind;
    const char *thing, *value;
    size_t owner, guest; /* people */
    int64_t said_at;     /* where the text last said the value; -1: not yet */
};

struct story {
    uint64_t seed, stream, drawn;
    struct corpus_document *document;
    size_t capacity, recall_capacity;
    size_t people[3]; /* hero, friend, other */
    struct fact facts[CORPUS_FACTS_MAX];
    size_t fact_count;
    struct fact *fact; /* that [thing], [value], [owner], [guest] stand for now */
    bool sentence_begins;
    size_t topic, topic_step; /* of the next scene; the step visits all topics before one comes again */
    const char *scene_words[MOST_SCENE_WORDS]; /* what [animal], [craft], … of this scene are; NULL: not yet named */
};

/* Lists of which a scene uses one word throughout. */
static const char *const scene_lists[] = {"animal", "craft", "game", "room"};

static size_t draw(struct story *story, size_t bound) {
    return (size_t)rng_below(story->seed, story->stream, story->drawn++, bound);
}

static size_t list_length(const char *const *list) {
    size_t count = 0;
    while (list[count]) count++;
    return count;
}

static const char *draw_from(struct story *story, const char *const *list) {
    return list[draw(story, list_length(list))];
}

static const char *const *words_of(const char *name) {
    for (const struct corpus_list *list = corpus_lists; list->name; list++) {
        if (strcmp(list->name, name) == 0) return list->words;
    }
    return NULL;
}

static enum status append(struct story *story, const char *text, size_t length) {
    struct corpus_document *document = story->document;
    size_t needed = document->length + length + 1;
    if (needed > story->capacity) {
        size_t capacity = 2 * needed;
        TRY(memory_grow(&document->text, capacity, 1, "a story"));
        story->capacity = capacity;
    }
    memcpy(document->text + document->length, text, length);
    if (story->sentence_begins && length > 0 && isalpha((unsigned char)text[0])) {
        document->text[document->length] = (char)toupper((unsigned char)text[0]);
        story->sentence_begins = false;
    }
    document->length += length;
    document->text[document->length] = '\0';
    return STATUS_OK;
}

/* A word; "a" before a vowel becomes "an". */
static enum status append_word(struct story *story, const char *word) {
    const struct corpus_document *document = story->document;
    size_t length = document->length;
    bool article = length >= 3 && document->text[length - 1] == ' ' &&
                   tolower((unsigned char)document->text[length - 2]) == 'a' &&
                   strchr(" \n\"", document->text[length - 3]);
    if (article && strchr("aeiou", word[0])) {
        story->document->length--;
        TRY(append(story, "n ", 2));
    }
    return append(story, word, strlen(word));
}

static const char *person_word(const struct corpus_person *person, const char *form) {
    if (strcmp(form, "-he") == 0) return person->he;
    if (strcmp(form, "-his") == 0) return person->his;
    if (strcmp(form, "-him") == 0) return person->him;
    return person->name;
}

/* The word that a slot stands for; NULL: no such slot, which only a wrong pattern can ask for. */
static const char *slot_word(struct story *story, const char *slot) {
    static const char *const roles[] = {"hero", "friend", "other"};
    for (size_t i = 0; i < 3; i++) {
        size_t length = strlen(roles[i]);
        if (strncmp(slot, roles[i], length) == 0) return person_word(&corpus_people[story->people[i]], slot + length);
    }
    const struct fact *fact = story->fact;
    if (fact && strcmp(slot, "thing") == 0) return fact->thing;
    if (fact && strcmp(slot, "value") == 0) return fact->value;
    if (fact && strncmp(slot, "owner", 5) == 0) return person_word(&corpus_people[fact->owner], slot + 5);
    if (fact && strncmp(slot, "guest", 5) == 0) return person_word(&corpus_people[fact->guest], slot + 5);
    if (strcmp(slot, "he") == 0) return corpus_people[story->people[0]].he;
    if (strcmp(slot, "his") == 0) return corpus_people[story->people[0]].his;
    for (size_t i = 0; i < MOST_SCENE_WORDS; i++) {
        if (strcmp(scene_lists[i], slot) != 0) continue;
        if (!story->scene_words[i]) story->scene_words[i] = draw_from(story, words_of(slot));
        return story->scene_words[i];
    }
    const char *const *words = words_of(slot);
    return words ? draw_from(story, words) : NULL;
}

static enum status tell_slot(struct story *story, const char *name, size_t length) {
    char slot[32];
    snprintf(slot, sizeof slot, "%.*s", (int)length, name);
    const char *word = slot_word(story, slot);
    if (!word) return error_set(STATUS_FAILED, "the sample corpus has no word list \"%s\"", slot);
    bool value = strcmp(slot, "value") == 0;
    TRY(append_word(story, word));
    if (value) story->fact->said_at = (int64_t)(story->document->length - strlen(word));
    return STATUS_OK;
}

/* The chosen one of the alternatives between pattern[0] = '{' and the next '}': from …, *length bytes. */
static const char *choose(struct story *story, const char *pattern, const char *close, size_t *length) {
    size_t count = 1;
    for (const char *c = pattern; c < close; c++) count += *c == '|';
    const char *from = pattern + 1;
    for (size_t skip = draw(story, count); skip > 0; skip--)
        from = (const char *)memchr(from, '|', (size_t)(close - from)) + 1;
    const char *bar = memchr(from, '|', (size_t)(close - from));
    *length = (size_t)((bar ? bar : close) - from);
    return from;
}

static enum status record_answer(struct story *story, int64_t start, int64_t said_at) {
    struct corpus_document *document = story->document;
    if (document->recall_count == story->recall_capacity) {
        size_t capacity = 2 * story->recall_capacity + 4;
        TRY(memory_grow(&document->recalls, capacity, sizeof *document->recalls, "the answers of a story"));
        story->recall_capacity = capacity;
    }
    document->recalls[document->recall_count++] = (struct corpus_recall){
        .start = start, .length = (int64_t)document->length - start, .distance = start - said_at};
    return STATUS_OK;
}

/* Appends the pattern's text, without a space before it. */
static enum status tell_part(struct story *story, const char *pattern, size_t pattern_length) {
    const char *end = pattern + pattern_length;
    int64_t said_at = -1, start = -1;
    for (const char *c = pattern; c < end; c++) {
        const char *close = *c == '[' ? strchr(c, ']') : *c == '{' ? strchr(c, '}') : c;
        if (!close) return error_set(STATUS_FAILED, "the sample corpus has a pattern without an end: %s", pattern);
        if (*c == '[') {
            TRY(tell_slot(story, c + 1, (size_t)(close - c) - 1));
        } else if (*c == '{') {
            size_t length = 0;
            const char *choice = choose(story, c, close, &length);
            TRY(append(story, choice, length));
        } else if (*c == '<') {
            said_at = story->fact->said_at;
            start = (int64_t)story->document->length;
        } else if (*c == '>') {
            TRY(record_answer(story, start, said_at));
        } else {
            TRY(append(story, c, 1));
        }
        c = close;
    }
    return STATUS_OK;
}

static enum status tell(struct story *story, const char *pattern) {
    size_t length = story->document->length;
    if (length > 0 && story->document->text[length - 1] != '\n') TRY(append(story, " ", 1));
    story->sentence_begins = true;
    return tell_part(story, pattern, strlen(pattern));
}

/* Is the thing, or for facts about a person the person, already taken by a fact of the same kind? */
static bool is_taken(const struct story *story, const struct fact *fact) {
    for (size_t i = 0; i < story->fact_count; i++) {
        const struct fact *other = &story->facts[i];
        if (other->kind != fact->kind) continue;
        if (fact->thing ? strcmp(other->thing, fact->thing) == 0 : other->owner == fact->owner) return true;
    }
    return false;
}

static void invent_people(struct story *story) {
    for (size_t i = 0; i < 3; i++) {
        bool taken;
        do {
            story->people[i] = draw(story, corpus_people_count);
            taken = false;
            for (size_t j = 0; j < i; j++) taken = taken || story->people[j] == story->people[i];
        } while (taken);
    }
}

static void invent_facts(struct story *story, size_t wanted) {
    for (size_t tries = 0; tries < 8 * wanted && story->fact_count < wanted; tries++) {
        /* Things in their hiding places are the heart of it: every second fact. */
        size_t kind = draw(story, 2) ? 0 : draw(story, corpus_fact_count);
        struct fact fact = {.kind = &corpus_facts[kind], .said_at = -1};
        size_t owner = draw(story, 3);
        fact.owner = story->people[owner];
        fact.guest = story->people[(owner + 1 + draw(story, 2)) % 3];
        const char *const *things = words_of(fact.kind->things);
        if (things) fact.thing = draw_from(story, things);
        fact.value = draw_from(story, words_of(fact.kind->values));
        if (!is_taken(story, &fact)) story->facts[story->fact_count++] = fact;
    }
}

/* Sentences of one topic, in their order, some left out. */
static enum status tell_scene(struct story *story, size_t most) {
    const char *const *scene = corpus_scenes[story->topic];
    story->topic = (story->topic + story->topic_step) % corpus_scene_count;
    memset(story->scene_words, 0, sizeof story->scene_words);
    size_t count = list_length(scene);
    for (size_t i = 0; i < count && most > 0; i++) {
        if (draw(story, 3) == 0) continue;
        TRY(tell(story, scene[i]));
        most--;
    }
    return STATUS_OK;
}

static enum status tell_fact(struct story *story, size_t index, const char *const *patterns) {
    story->fact = &story->facts[index];
    return tell(story, draw_from(story, patterns));
}

/* Somewhere in the middle: a fact changes or is asked for. */
static enum status tell_middle(struct story *story) {
    size_t index = draw(story, story->fact_count);
    struct fact *fact = &story->facts[index];
    if (!fact->kind->changes || draw(story, 2)) return tell_fact(story, index, fact->kind->recalls);
    const char *old = fact->value;
    while (fact->value == old) fact->value = draw_from(story, words_of(fact->kind->values));
    return tell_fact(story, index, fact->kind->changes);
}

/* facts: how many; 0: as many as suit the length. asked: how often the end asks for each. */
static enum status tell_story(struct story *story, size_t target, size_t facts, size_t asked) {
    const struct corpus_document *document = story->document;
    invent_people(story);
    story->topic = draw(story, corpus_scene_count);
    story->topic_step = 1 + draw(story, corpus_scene_count - 1);
    if (facts == 0) facts = 2 + target / 1000 < USUAL_FACTS ? 2 + target / 1000 : USUAL_FACTS;
    invent_facts(story, facts);
    TRY(tell(story, draw_from(story, corpus_openings)));
    for (size_t i = 0; i < story->fact_count; i++) {
        TRY(tell_fact(story, i, story->facts[i].kind->statements));
        if (draw(story, 3) == 0) TRY(tell_scene(story, 2));
    }
    size_t reserve = 90 * asked * story->fact_count + 80; /* bytes that the questions and the ending will take */
    while (document->length + reserve < target) {
        TRY(append(story, "\n\n", 2));
        TRY(tell_scene(story, 3 + draw(story, 6)));
        if (draw(story, 4) == 0) TRY(tell_middle(story));
    }
    TRY(append(story, "\n\n", 2));
    size_t first = draw(story, story->fact_count);
    for (size_t i = 0; i < asked * story->fact_count; i++) {
        size_t index = (first + i) % story->fact_count;
        TRY(tell_fact(story, index, story->facts[index].kind->recalls));
    }
    return tell(story, draw_from(story, corpus_endings));
}

enum status corpus_document_make(uint64_t seed, int64_t index, const struct corpus_shape *shape,
                                 struct corpus_document *document) {
    double shortest = shape && shape->shortest > 0 ? (double)shape->shortest : SHORTEST;
    double longest = shape && shape->longest > 0 ? (double)shape->longest : LONGEST;
    struct story story = {.seed = seed, .stream = rng_substream(RNG_CORPUS, (uint64_t)index), .document = document};
    *document = (struct corpus_document){0};
    if (shortest > longest) {
        return error_set(STATUS_USAGE, "corpus: shortest: expected at most the longest, %.0f, found %.0f", longest,
                         shortest);
    }
    size_t facts = shape && shape->facts > 0 ? (size_t)shape->facts : 0;
    size_t asked = shape && shape->asked > 0 ? (size_t)shape->asked : 1;
    if (facts > CORPUS_FACTS_MAX) {
        return error_set(STATUS_USAGE, "corpus: facts: expected at most %d, found %zu", CORPUS_FACTS_MAX, facts);
    }
    double share = rng_uniform(seed, story.stream, story.drawn++);
    enum status status = tell_story(&story, (size_t)(shortest * pow(longest / shortest, share)), facts, asked);
    if (status == STATUS_OK) status = append(&story, "\n", 1);
    if (status != STATUS_OK) corpus_document_free(document);
    return status;
}

void corpus_document_free(struct corpus_document *document) {
    if (!document) return;
    free(document->text);
    free(document->recalls);
    *document = (struct corpus_document){0};
}
