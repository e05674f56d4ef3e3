/* squint doctor: looks for what would break a run before it is started. Runs the checks in order, puts together what
 * the ranks found, prints it. The checks themselves are in doctor_ranks.c, doctor_machine.c and doctor_files.c. */
#include "commands/doctor.h"
#include "commands/ranks.h"

#include "base/log.h"
#include "base/memory.h"
#include "commands/command.h"
#include "commands/commands.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    doctor_check *check;
} checks[] = {
    {"mpi", doctor_mpi},
    {"clock", doctor_clock},
    {"transport", doctor_transport},
    {"gpu", doctor_gpu},
    {"nccl", doctor_nccl},
    {"threads", doctor_threads},
    {"memory", doctor_memory},
    {"shared memory", doctor_shared_memory},
    {"locked memory", doctor_locked_memory},
    {"open files", doctor_open_files},
    {"stack", doctor_stack},
    {"core files", doctor_core_files},
    {"disk", doctor_disk},
    {"locks", doctor_locks},
    {"hdf5", doctor_hdf5},
    {"shared files", doctor_shared_files},
    {"data", doctor_data},
};
enum { CHECKS = sizeof checks / sizeof *checks, GROUPS_SHOWN = 4 };

/* --- findings --------------------------------------------------------------------------------------------------- */

void finding_set(struct finding *finding, enum level level, const char *format, ...) {
    va_list arguments;
    if (finding->found[0] && finding->level >= (int32_t)level) return;
    va_start(arguments, format);
    vsnprintf(finding->found, sizeof finding->found, format, arguments);
    va_end(arguments);
    finding->level = (int32_t)level;
    finding->fix[0] = '\0';
}

void finding_fix(struct finding *finding, const char *format, ...) {
    va_list arguments;
    if (finding->fix[0]) return;
    va_start(arguments, format);
    vsnprintf(finding->fix, sizeof finding->fix, format, arguments);
    va_end(arguments);
}

void finding_error(struct finding *finding, enum level level, const char *fix) {
    finding_set(finding, level, "%s", error_message());
    if (fix) finding_fix(finding, "%s", fix);
    error_clear();
}

/* --- what is printed -------------------------------------------------------------------------------------------- */

/* "rank 1 on b", "ranks 0-3, 6 on a", "ranks 0-7" over several hosts. member[r]: rank r is one of them. */
static void name_ranks(const struct doctor *d, const bool *member, char *text, size_t capacity) {
    size_t used = 0;
    int count = 0;
    const char *host = NULL;
    bool one_host = true;
    text[0] = '\0';
    for (int first = 0, last; first < d->size && used + 32 < capacity; first = last + 1) {
        last = first;
        if (!member[first]) continue;
        while (last + 1 < d->size && member[last + 1]) last++;
        for (int r = first; r <= last; r++) {
            if (!host) host = d->hosts[r].name;
            one_host = one_host && strcmp(host, d->hosts[r].name) == 0;
        }
        used += (size_t)snprintf(text + used, capacity - used, last > first ? "%s%d-%d" : "%s%d", count ? ", " : "",
                                 first, last);
        count += last > first ? 2 : 1;
    }
    char *list = strdup(text);
    snprintf(text, capacity, "%s %s%s%s", count > 1 ? "ranks" : "rank", list ? list : "",
             one_host && host ? " on " : "", one_host && host ? host : "");
    free(list);
}

struct group { /* ranks that found the same */
    const struct finding *finding;
    bool *member; /* [size] */
    char ranks[192];
};

/* The ranks with the worst level, by what they found: at most GROUPS_SHOWN groups; *left: ranks that are in none. */
static enum status make_groups(const struct doctor *d, const struct finding *all, struct group *groups, int *count,
                               int *left) {
    int32_t worst = LEVEL_OK;
    *count = *left = 0;
    for (int r = 0; r < d->size; r++) worst = all[r].level > worst ? all[r].level : worst;
    for (int r = 0; r < d->size; r++) {
        int g = 0;
        if (all[r].level != worst) continue;
        while (g < *count && strcmp(groups[g].finding->found, all[r].found) != 0) g++;
        if (g == *count && g == GROUPS_SHOWN) {
            ++*left;
            continue;
        }
        if (g == *count) {
            groups[g] = (struct group){.finding = &all[r]};
            TRY(memory_new((size_t)d->size, sizeof(bool), "ranks", &groups[g].member));
            ++*count;
        }
        groups[g].member[r] = true;
    }
    for (int g = 0; g < *count; g++) name_ranks(d, groups[g].member, groups[g].ranks, sizeof groups[g].ranks);
    return STATUS_OK;
}

static void print_lines(const struct doctor *d, const char *name, const struct group *groups, int count, int left) {
    static const char *const words[] = {"ok", "warn", "FAIL"};
    const int32_t level = groups[0].finding->level;
    if (level == LEVEL_OK) count = 1; /* such figures as free memory differ from rank to rank: one will do */
    for (int g = 0; g < count; g++) {
        const struct finding *f = groups[g].finding;
        const bool names = level != LEVEL_OK && d->size > 1;
        printf("%-5s %-14s %s%s%s\n", words[level], g ? "" : name, names ? groups[g].ranks : "", names ? ": " : "",
               f->found);
        if (f->fix[0]) printf("%-5s %-14s -> %s\n", "", "", f->fix);
    }
    if (level != LEVEL_OK && left > 0) printf("%-5s %-14s and %d more ranks\n", "", "", left);
    fflush(stdout);
}

static json_t *to_json(const struct doctor *d, const char *name, const struct group *groups, int count) {
    static const char *const words[] = {"ok", "warn", "fail"};
    json_t *findings = json_array();
    for (int g = 0; g < count; g++) {
        json_t *ranks = json_array();
        for (int r = 0; r < d->size; r++)
            if (groups[g].member[r]) json_array_append_new(ranks, json_integer(r));
        json_array_append_new(findings, json_pack("{s:o, s:s, s:s, s:s}", "ranks", ranks, "where", groups[g].ranks,
                                                  "found", groups[g].finding->found, "fix", groups[g].finding->fix));
    }
    return json_pack("{s:s, s:s, s:o}", "check", name, "level", words[groups[0].finding->level], "findings", findings);
}

/* --- running ---------------------------------------------------------------------------------------------------- */

struct tally {
    int64_t counts[3]; /* of checks, by level */
    json_t *rows;      /* NULL: lines are printed */
};

/* One check on all ranks; rank 0 shows the outcome. */
static enum status run_check(struct doctor *d, int number, struct tally *tally) {
    struct finding own = {.level = LEVEL_OK}, *all = NULL;
    struct group groups[GROUPS_SHOWN] = {{0}};
    int count = 0, left = 0;
    enum status status = STATUS_OK;
    TRY(checks[number].check(d, &own));
    TRY(comm_agree(d->comm, memory_new((size_t)d->size, sizeof own, "findings", &all)));
    TRY_GOTO(done, comm_all_gather(d->comm, tensor_1d(&own, DTYPE_U8, sizeof own),
                                   tensor_1d(all, DTYPE_U8, d->size * (int64_t)sizeof own)));
    TRY_GOTO(done, comm_agree(d->comm, make_groups(d, all, groups, &count, &left)));
    if (groups[0].finding->found[0]) tally->counts[groups[0].finding->level]++; /* else it had nothing to look at */
    if (d->rank == 0 && groups[0].finding->found[0]) {
        if (tally->rows) {
            json_array_append_new(tally->rows, to_json(d, checks[number].name, groups, count));
        } else {
            print_lines(d, checks[number].name, groups, count, left);
        }
    }
done:
    for (int g = 0; g < count; g++) free(groups[g].member);
    free(all);
    return status;
}

static void print_end(const struct doctor *d, const struct tally *tally) {
    const int64_t *n = tally->counts;
    if (tally->rows) {
        json_t *root = json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:O}", "squint", SQUINT_VERSION, "ranks", d->size,
                                 "hosts", d->hosts_seen, "ok", (json_int_t)n[LEVEL_OK], "warn",
                                 (json_int_t)n[LEVEL_WARN], "fail", (json_int_t)n[LEVEL_FAIL], "checks", tally->rows);
        if (root) json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(root);
    } else {
        printf("\n%lld ok, %lld to look at, %lld that would break a run\n", (long long)n[LEVEL_OK],
               (long long)n[LEVEL_WARN], (long long)n[LEVEL_FAIL]);
    }
    fflush(stdout);
}

static enum status run_all(struct doctor *d, bool json) {
    struct tally tally = {.rows = json && d->rank == 0 ? json_array() : NULL};
    enum status status = doctor_gather_hosts(d);
    if (status == STATUS_OK) status = doctor_find_place(d);
    if (status == STATUS_OK && d->rank == 0 && !json)
        printf("squint %s doctor: %d rank%s on %d host%s\n\n", SQUINT_VERSION, d->size, d->size == 1 ? "" : "s",
               d->hosts_seen, d->hosts_seen == 1 ? "" : "s");
    for (int n = 0; n < CHECKS && status == STATUS_OK; n++) status = run_check(d, n, &tally);
    if (status == STATUS_OK && d->rank == 0) print_end(d, &tally);
    if (status == STATUS_OK && tally.counts[LEVEL_FAIL] > 0)
        status = error_set(STATUS_FAILED, "doctor: %lld of %lld checks failed", (long long)tally.counts[LEVEL_FAIL],
                           (long long)(tally.counts[LEVEL_OK] + tally.counts[LEVEL_WARN] + tally.counts[LEVEL_FAIL]));
    json_decref(tally.rows);
    return status;
}

/* Options and recipe, on every rank alike. `words` and `overrides` are the caller's to free. */
static enum status read_options(int argc, char **argv, struct doctor *d, struct config *config,
                                struct option_list *words, struct option_list *overrides, bool *json) {
    const char *resume = NULL; /* this and dry: of `squint train`, whose words may be given as they are */
    bool dry = false;
    const struct option table[] = {
        {"run", OPTION_TEXT, &d->run, 0, 0},    {"device", OPTION_TEXT, &d->device, 0, 0},
        {"resume", OPTION_TEXT, &resume, 0, 0}, {"dry-run", OPTION_FLAG, &dry, 0, 0},
        {"json", OPTION_FLAG, json, 0, 0},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, words, overrides));
    if (words->count > 1)
        return error_set(STATUS_USAGE, "doctor: expected one recipe at most, found %zu words; see squint doctor --help",
                         words->count);
    if (words->count == 0 && overrides->count > 0)
        return error_set(STATUS_USAGE, "doctor: %s changes a recipe, and none is given", overrides->values[0]);
    if (words->count == 1) {
        TRY(config_read(words->values[0], overrides->values, overrides->count, config));
        d->config = config;
    }
    if (!d->run) d->run = d->config ? d->config->run : ".";
    if (!d->device) d->device = d->config ? d->config->device : "auto";
    if (strcmp(d->device, "auto") != 0 && strcmp(d->device, "cpu") != 0 && strcmp(d->device, "cuda") != 0)
        return error_set(STATUS_USAGE, "doctor: --device: expected auto, cpu or cuda, found \"%s\"", d->device);
    return STATUS_OK;
}

static enum status run_doctor(int argc, char **argv) {
    struct doctor d = {.size = 1};
    struct config config = {0};
    struct option_list words = {0}, overrides = {0};
    bool json = false;
    doctor_find_launcher(&d); /* asks it for its version: no process is started once MPI is */
    enum status status = comm_open(&(struct comm_options){.deadline_s = 60}, &d.comm);
    if (status != STATUS_OK) return status;
    d.rank = comm_rank(d.comm);
    d.size = comm_size(d.comm);
    log_start(d.rank, false);
    status = comm_agree(d.comm, read_options(argc, argv, &d, &config, &words, &overrides, &json));
    if (status == STATUS_OK) status = run_all(&d, json);
    if (d.ops) d.ops->close(d.ops);
    ranks_leave_message(d.rank, status);
    KEEP_FIRST(status, comm_close(&d.comm));
    config_free(&config);
    options_free(&words);
    options_free(&overrides);
    free(d.hosts);
    free(d.ahead_s);
    free(d.there_s);
    return status;
}

const struct command command_doctor = {
    .name = "doctor",
    .summary = "what would break a run on these machines: MPI, GPUs, clocks, disk, locks, limits",
    .help = "usage: squint doctor [RECIPE.yaml [--section.key=value ...]] [options]\n"
            "       mpirun -np N squint doctor ...     the N ranks that are to train\n\n"
            "Looks at MPI and its launcher, clocks, the network, GPUs, NCCL, threads, memory, /dev/shm, limits, the "
            "run's directory (free\n"
            "space, flush, rename, locks, HDF5, whether all ranks see the same files) and the recipe's data. A line "
            "each: ok, warn (the run\n"
            "works, but slower or less safely) or FAIL (it would break), which ranks, and what to do. Files that it "
            "makes it takes away again.\n"
            "Exit code 1 when a check fails. Takes the words of a `squint train` as they are.\n\n"
            "  --run DIR                 the run's directory (default: the recipe's, else this one)\n"
            "  --device auto|cpu|cuda    what is to compute (default: the recipe's, else auto)\n"
            "  --json                    the same as JSON\n\n"
            "example: mpirun -np 2 squint doctor launch/recipes/stories-masks.yaml\n",
    .run = run_doctor,
};
