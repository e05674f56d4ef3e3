/* See gradients.h. */
#include "train/gradients.h"

#include "base/memory.h"
#include "params/division.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { EXCHANGE_ELEMENTS = 1 << 20 };
/* Over MPI every reduction under way holds what it has received: no more than so many at once. NCCL needs no memory for
 * them, and nobody is there to start the next one while the host waits for the GPU. */
enum { WINDOW = 4 };

/* MPI moves bytes only inside its calls, and the rank's own thread computes: a second one calls, and sleeps between the
 * calls. While it works nobody else talks to MPI, and its lock guards what it shares with the rank's thread. */
struct sender {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool works, leaves;
    enum status status; /* of what it met first, with the message */
    char message[2048];
};
enum { SENDER_PAUSE_NS = 200000 };

int64_t gradients_bucket_elements(const struct config *config, enum dtype dtype, int size) {
    const double elements = config->parallel.bucket_mib * 1048576.0 / (double)dtype_size(dtype);
    /* Equal parts for all ranks that begin at multiples of 64 elements, where it is large enough. */
    const int64_t grain = elements >= 64.0 * size ? 64 * (int64_t)size : size;
    const int64_t whole = (int64_t)(elements / (double)grain) * grain;
    return whole > 0 ? whole : grain;
}

static enum status sender_start(struct gradients *g);
static void sender_end(struct gradients *g);

static struct bucket *bucket_at(const struct gradients *g, int64_t place) {
    return &g->params->division.buckets[g->order[place]];
}

/* Complete ones first; of those that are complete at once, the last in the blocks first. */
static int compare(const struct bucket *buckets, int64_t a, int64_t b) {
    if (buckets[a].layer != buckets[b].layer) return buckets[a].layer > buckets[b].layer ? -1 : 1;
    return a > b ? -1 : 1;
}

static void find_order(struct gradients *g) {
    const struct division *division = &g->params->division;
    for (int64_t b = 0; b < division->bucket_count; b++) {
        if (!bucket_trains(g->params, &division->buckets[b])) continue;
        int64_t at = g->count++;
        for (; at > 0 && compare(division->buckets, b, g->order[at - 1]) < 0; at--) g->order[at] = g->order[at - 1];
        g->order[at] = b;
    }
}

static bool is_narrow(const struct params *params, const struct config *config) {
    return config->parallel.reduce == REDUCE_BF16 && params->ops->parameter == DTYPE_F32;
}

size_t gradients_bytes(const struct params *params, const struct config *config, int size, bool carried) {
    const enum dtype dtype = params->ops->parameter;
    size_t bytes = 0;
    if (size == 1) return 0;
    if (is_narrow(params, config)) bytes += (size_t)params->owned_elements * dtype_size(DTYPE_BF16);
    if (!params->ops->host_memory || !carried) return bytes;
    const enum dtype sent = is_narrow(params, config) ? DTYPE_BF16 : dtype;
    const size_t most = (size_t)params->owned_elements, piece = COMM_PIECE_BYTES / dtype_size(sent);
    size_t bucket = (size_t)gradients_bucket_elements(config, dtype, size);
    if (bucket > piece) bucket = piece;
    const size_t under_way = most < WINDOW * bucket ? most : WINDOW * bucket;
    return bytes + under_way * dtype_size(sent) / (size_t)size * (size_t)(size - 1);
}

enum status gradients_open(struct params *params, const struct config *config, struct comm *comm, struct comm *gpu,
                           struct gradients *g) {
    const struct ops *ops = params->ops;
    const size_t buckets = (size_t)params->division.bucket_count;
    enum status status = STATUS_OK;
    *g = (struct gradients){.params = params, .host = comm};
    if (comm_size(comm) == 1) return STATUS_OK;
    g->carrier = ops->host_memory ? comm : gpu;
    g->window = ops->host_memory ? WINDOW : INT64_MAX;
    TRY_GOTO(done, memory_new(buckets, sizeof *g->order, "buckets", &g->order));
    TRY_GOTO(done, memory_new(buckets, sizeof *g->requests, "buckets", &g->requests));
    find_order(g);
    if (ops->host_memory && config->parallel.overlap) TRY_GOTO(done, sender_start(g));
    if (!g->carrier)
        TRY_GOTO(done, memory_new(EXCHANGE_ELEMENTS, sizeof *g->exchange, "gradients on their way", &g->exchange));
    if (is_narrow(params, config)) {
        void *block = NULL;
        TRY_GOTO(done, ops->allocate(ops, (size_t)params->owned_elements * dtype_size(DTYPE_BF16), &block));
        g->narrow = tensor_1d(block, DTYPE_BF16, params->owned_elements);
    }
done:
    if (status != STATUS_OK) gradients_close(g);
    return status;
}

void gradients_close(struct gradients *g) {
    if (!g || !g->params) return;
    sender_end(g);
    if (tensor_present(g->narrow)) g->params->ops->release(g->params->ops, g->narrow.data);
    free(g->exchange);
    free(g->order);
    free(g->requests);
    *g = (struct gradients){0};
}

/* --- one bucket --------------------------------------------------------------------------------------------------- */

/* The bucket as it travels. */
static struct tensor travelling(const struct gradients *g, const struct bucket *bucket) {
    return tensor_rows(tensor_present(g->narrow) ? g->narrow : g->params->grads, bucket->first, bucket->count);
}

static enum status narrow_bucket(const struct gradients *g, const struct bucket *bucket) {
    const struct ops *ops = g->params->ops;
    if (!tensor_present(g->narrow)) return STATUS_OK;
    return ops->copy(ops, tensor_rows(g->params->grads, bucket->first, bucket->count), travelling(g, bucket));
}

static enum status widen_bucket(const struct gradients *g, const struct bucket *bucket) {
    const struct ops *ops = g->params->ops;
    int64_t first = 0, count = 0;
    if (!tensor_present(g->narrow)) return STATUS_OK;
    division_part(&g->params->division, bucket, g->params->division.rank, &first, &count);
    if (count == 0) return STATUS_OK;
    return ops->copy(ops, tensor_rows(g->narrow, first, count), tensor_rows(g->params->grads, first, count));
}

static enum status start_bucket(struct gradients *g, int64_t place) {
    const struct bucket *bucket = bucket_at(g, place);
    const struct division *division = &g->params->division;
    const struct tensor whole = travelling(g, bucket);
    struct comm_request *requests = g->requests[place];
    requests[0] = requests[1] = (struct comm_request){NULL};
    if (!division->zero) return comm_all_reduce_start(g->carrier, whole, COMM_SUM, &requests[0]);
    const int64_t each = bucket->count / division->size, even = each * division->size;
    if (each > 0) {
        TRY(comm_reduce_scatter_start(g->carrier, tensor_rows(whole, 0, even),
                                      tensor_rows(whole, division->rank * each, each), COMM_SUM, &requests[0]));
    }
    if (even == bucket->count) return STATUS_OK;
    return comm_all_reduce_start(g->carrier, tensor_rows(whole, even, bucket->count - even), COMM_SUM, &requests[1]);
}

static enum status end_bucket(struct gradients *g, int64_t place) {
    TRY(comm_end(g->carrier, &g->requests[place][0]));
    return comm_end(g->carrier, &g->requests[place][1]);
}

/* --- a step ------------------------------------------------------------------------------------------------------- */

void gradients_begin(struct gradients *g) {
    g->ready = g->begun = g->done = 0;
    if (g->sender) g->sender->status = STATUS_OK;
}

/* Ends what has arrived, in order, and starts what is ready, as far as the window is open. */
static enum status advance(struct gradients *g) {
    for (; g->done < g->begun; g->done++) {
        bool first = false, second = false;
        TRY(comm_test(g->carrier, &g->requests[g->done][0], &first));
        TRY(comm_test(g->carrier, &g->requests[g->done][1], &second));
        if (!first || !second) break;
        TRY(end_bucket(g, g->done));
    }
    for (; g->begun < g->ready && g->begun - g->done < g->window; g->begun++) TRY(start_bucket(g, g->begun));
    return STATUS_OK;
}

static void *send_beside(void *user) {
    struct gradients *g = user;
    struct sender *sender = g->sender;
    pthread_mutex_lock(&sender->lock);
    while (!sender->leaves) {
        if (!sender->works || sender->status != STATUS_OK) {
            pthread_cond_wait(&sender->wake, &sender->lock);
            continue;
        }
        comm_progress(g->carrier);
        sender->status = advance(g);
        if (sender->status != STATUS_OK) snprintf(sender->message, sizeof sender->message, "%s", error_message());
        pthread_mutex_unlock(&sender->lock);
        nanosleep(&(struct timespec){.tv_nsec = SENDER_PAUSE_NS}, NULL);
        pthread_mutex_lock(&sender->lock);
    }
    pthread_mutex_unlock(&sender->lock);
    return NULL;
}

static enum status sender_start(struct gradients *g) {
    sigset_t all, before;
    TRY(memory_new(1, sizeof *g->sender, "a thread", &g->sender));
    pthread_mutex_init(&g->sender->lock, NULL);
    pthread_cond_init(&g->sender->wake, NULL);
    sigfillset(&all); /* signals are the rank's own thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&g->sender->thread, NULL, send_beside, g);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) return STATUS_OK;
    pthread_mutex_destroy(&g->sender->lock);
    pthread_cond_destroy(&g->sender->wake);
    free(g->sender);
    g->sender = NULL;
    return error_set(STATUS_MEMORY, "gradients: a thread that sends them cannot be started: code %d", code);
}

static void sender_end(struct gradients *g) {
    struct sender *sender = g->sender;
    if (!sender) return;
    pthread_mutex_lock(&sender->lock);
    sender->leaves = true;
    pthread_cond_signal(&sender->wake);
    pthread_mutex_unlock(&sender->lock);
    pthread_join(sender->thread, NULL);
    pthread_mutex_destroy(&sender->lock);
    pthread_cond_destroy(&sender->wake);
    free(sender);
    g->sender = NULL;
}

enum status gradients_ready(struct gradients *g, int64_t layer) {
    int64_t ready = g->ready;
    if (!g->carrier) return STATUS_OK;
    for (; ready < g->count && bucket_at(g, ready)->layer >= layer; ready++) TRY(narrow_bucket(g, bucket_at(g, ready)));
    if (!g->sender) {
        g->ready = ready;
        return advance(g);
    }
    pthread_mutex_lock(&g->sender->lock);
    g->ready = ready;
    g->sender->works = true;
    pthread_cond_signal(&g->sender->wake);
    pthread_mutex_unlock(&g->sender->lock);
    return STATUS_OK;
}

/* From now on this thread alone talks to MPI. */
static enum status take_over(struct gradients *g) {
    if (!g->sender) return STATUS_OK;
    pthread_mutex_lock(&g->sender->lock);
    g->sender->works = false;
    const enum status status = g->sender->status;
    pthread_mutex_unlock(&g->sender->lock);
    return status == STATUS_OK ? STATUS_OK : error_set(status, "%s", g->sender->message);
}

/* MPI reads host memory: what lies elsewhere, and NCCL does not take, passes through it. */
static enum status reduce_through_host(struct gradients *g, struct tensor data) {
    const struct ops *ops = g->params->ops;
    enum status status = STATUS_OK;
    for (int64_t first = 0; first < data.shape[0]; first += EXCHANGE_ELEMENTS) {
        const int64_t rest = data.shape[0] - first, count = rest < EXCHANGE_ELEMENTS ? rest : EXCHANGE_ELEMENTS;
        const struct tensor part = tensor_rows(data, first, count);
        KEEP_FIRST(status, ops->download(ops, part, g->exchange));
        TRY(comm_agree(g->host, status));
        TRY(comm_all_reduce(g->host, tensor_1d(g->exchange, part.dtype, count), COMM_SUM));
        status = ops->upload(ops, part, g->exchange);
    }
    return comm_agree(g->host, status);
}

static enum status end_through_host(struct gradients *g) {
    enum status status = STATUS_OK;
    for (int64_t place = 0; place < g->count; place++) {
        KEEP_FIRST(status, narrow_bucket(g, bucket_at(g, place)));
        TRY(reduce_through_host(g, travelling(g, bucket_at(g, place))));
        KEEP_FIRST(status, widen_bucket(g, bucket_at(g, place)));
    }
    return status;
}

enum status gradients_end(struct gradients *g) {
    if (g->count == 0) return STATUS_OK;
    if (!g->carrier) return end_through_host(g);
    enum status status = STATUS_OK; /* of this rank alone: the others still get their buckets */
    TRY(take_over(g));
    for (; g->ready < g->count; g->ready++) KEEP_FIRST(status, narrow_bucket(g, bucket_at(g, g->ready)));
    while (g->done < g->count) {
        TRY(advance(g));
        if (g->done == g->count) break;
        TRY(end_bucket(g, g->done));
        g->done++;
    }
    for (int64_t place = 0; place < g->count; place++) KEEP_FIRST(status, widen_bucket(g, bucket_at(g, place)));
    return status;
}

/* --- ZeRO: the values back ---------------------------------------------------------------------------------------- */

/* whole: size·each elements, of which this rank has its part; the same through host memory. */
static enum status gather_through_host(struct gradients *g, struct tensor whole, int64_t each) {
    const struct ops *ops = g->params->ops;
    const int64_t size = g->params->division.size, rank = g->params->division.rank, most = EXCHANGE_ELEMENTS / size;
    enum status status = STATUS_OK;
    for (int64_t first = 0; first < each; first += most) {
        const int64_t count = each - first < most ? each - first : most;
        const struct tensor all = tensor_1d(g->exchange, whole.dtype, count * size),
                            own = tensor_rows(all, rank * count, count);
        KEEP_FIRST(status, ops->download(ops, tensor_rows(whole, rank * each + first, count), own.data));
        TRY(comm_agree(g->host, status));
        TRY(comm_all_gather(g->host, own, all));
        for (int64_t r = 0; r < size; r++) {
            KEEP_FIRST(status, ops->upload(ops, tensor_rows(whole, r * each + first, count),
                                           tensor_rows(all, r * count, count).data));
        }
    }
    return comm_agree(g->host, status);
}

/* What is left over, fewer elements than ranks, from the last rank. */
static enum status broadcast_rest(struct gradients *g, struct tensor rest) {
    const struct ops *ops = g->params->ops;
    const int last = g->params->division.size - 1;
    if (g->carrier) return comm_broadcast(g->carrier, rest, last);
    const struct tensor host = tensor_1d(g->exchange, rest.dtype, rest.shape[0]);
    TRY(comm_agree(g->host, ops->download(ops, rest, host.data)));
    TRY(comm_broadcast(g->host, host, last));
    return comm_agree(g->host, ops->upload(ops, rest, host.data));
}

/* Where every rank has the whole bucket: its values; where masters are divided the working copies, of added rows what
 * is kept. */
static struct tensor whole_bucket(const struct params *params, const struct bucket *bucket) {
    if (tensor_present(params->values)) return tensor_rows(params->values, bucket->first, bucket->count);
    if (params->rows[bucket->row].added) return bucket_kept(params, bucket);
    return tensor_rows(params->workings, bucket->first, bucket->count);
}

static enum status return_bucket(struct gradients *g, int64_t place) {
    const struct bucket *bucket = bucket_at(g, place);
    const struct division *division = &g->params->division;
    const struct tensor whole = whole_bucket(g->params, bucket);
    const int64_t each = bucket->count / division->size, even = each * division->size;
    const struct tensor parts = tensor_rows(whole, 0, even);
    g->requests[place][0] = (struct comm_request){NULL};
    if (each > 0 && !g->carrier) TRY(gather_through_host(g, parts, each));
    if (each > 0 && g->carrier) {
        TRY(comm_all_gather_start(g->carrier, tensor_rows(parts, division->rank * each, each), parts,
                                  &g->requests[place][0]));
    }
    return even < bucket->count ? broadcast_rest(g, tensor_rows(whole, even, bucket->count - even)) : STATUS_OK;
}

enum status gradients_return_values(struct gradients *g) {
    const struct params *params = g->params;
    enum status status = STATUS_OK; /* of this rank alone */
    if (g->count == 0 || !params->division.zero) return STATUS_OK;
    for (int64_t place = 0, begun = 0; place < g->count; place++) {
        for (; begun < g->count && begun - place < g->window; begun++) TRY(return_bucket(g, begun));
        const struct bucket *bucket = bucket_at(g, place);
        if (g->carrier) TRY(comm_end(g->carrier, &g->requests[place][0]));
        const struct tensor whole = whole_bucket(params, bucket);
        if (!tensor_present(params->workings) || whole.dtype == params->workings.dtype) continue;
        KEEP_FIRST(status,
                   params->ops->copy(params->ops, whole, tensor_rows(params->workings, bucket->first, bucket->count)));
    }
    return comm_agree(g->host, status);
}
