/* What the sample corpus is made of: word lists and sentence patterns.
 * In a pattern [name] is a slot: a person or a fact of the story, else a word of the list of that name; {a|b} is a
 * choice; <…> marks the answer of a question. */
#ifndef SQUINT_DATA_PREP_CORPUS_WORDS_H
#define SQUINT_DATA_PREP_CORPUS_WORDS_H

#include <stddef.h>

struct corpus_list { /* ends with a row whose name is NULL */
    const char *name;
    const char *const *words; /* NULL-terminated */
};
extern const struct corpus_list corpus_lists[];

struct corpus_person {
    const char *name, *he, *his, *him;
};
extern const struct corpus_person corpus_people[];
extern const size_t corpus_people_count;

/* A kind of fact: [thing] is what it is about, [value] what is to be remembered. */
struct corpus_fact {
    const char *things, *values;   /* lists */
    const char *const *statements; /* each says [value] once; NULL-terminated, like all below */
    const char *const *changes;    /* say a new [value] later in the story; NULL: it never changes */
    const char *const *recalls;    /* each has one <[value]> */
};
extern const struct corpus_fact corpus_facts[];
extern const size_t corpus_fact_count;

extern const char *const corpus_openings[];
extern const char *const corpus_endings[];
extern const char *const *const corpus_scenes[]; /* topics, each a list of sentences */
extern const size_t corpus_scene_count;          /* a prime number, so that any step visits all of them */

#endif
