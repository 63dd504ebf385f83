/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The scheduler of a replayed engine. It owns the requests, their queues and the block lists; it decides who
 * computes and who is preempted; it leaves to others what time it is and where blocks come from.
 *
 * Its promise is exactness: the same trace, model and answers of the memory give the same decisions in the
 * same order, and times as the same doubles, so that runs can be compared for equality. Under shortage the
 * outcome is chaotic, and anything less could not tell a mistake from noise.
 *
 * A step serves the running requests in order of admission, then admits waiting ones while the step's token
 * budget lasts. A running request that cannot get its next block preempts the youngest one, itself if it
 * comes to that; a preempted request gives all its blocks back and goes to the head of the queue with its
 * tokens so far as its prompt. A step in which that happened admits nobody.
 *
 * The blocks that running requests need are first asked for together, since memory answers one large request
 * faster than many small ones. As memory grants all or nothing, a grant has the outcome that the small
 * requests would have had one by one; after a refusal they are made one by one.
 *
 * What is given back names the last step that used it. A request that ends with a step is given back before
 * that step is said to be complete, as by a scheduler that is ahead of its GPU; who is preempted was last
 * computed in a step that is over, and others can have its blocks at once.
 */

#include "engine.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/list.h"

struct request {
    struct list link; /* in `waiting` */
    double arrival_s;
    uint32_t context; /* tokens of prompt; after a preemption with what had been generated */
    uint32_t output;  /* tokens still wanted when the context was last set */
    uint32_t prefilled;
    uint32_t generated; /* since the context was last set */
    bool answered;      /* the first token is out */
    uint32_t *blocks;
    uint32_t n_blocks, max_blocks;
};

struct engine {
    const struct model *model;
    struct memory *memory;
    struct request *requests;
    size_t n_requests, n_arrived;

    struct list waiting;
    struct request **running; /* oldest admission first */
    uint32_t n_running;

    /* The current step. */
    bool busy;
    bool preempted; /* somebody, in this step */
    uint32_t tokens_left;
    uint32_t prefill;
    struct request **emitting; /* those that have a token when it ends */
    uint32_t n_emitting;

    uint32_t *scratch; /* block numbers on their way between memory and requests */
    size_t max_scratch;

    double *ttft;
    size_t n_ttft;
    struct engine_counts counts;
};

static void request_init(struct request *r, const struct trace_request *from)
{
    *r = (struct request){.arrival_s = from->arrival_s, .context = from->context, .output = from->output};
    list_init(&r->link);
}

int engine_new(const struct model *model, struct memory *memory, const struct trace *trace,
               struct engine **ret_engine)
{
    _cleanup_(engine_freep) struct engine *e = calloc(1, sizeof(*e));

    if (!e)
        return -ENOMEM;
    e->model = model;
    e->memory = memory;
    e->n_requests = trace->n;
    list_init(&e->waiting);
    e->requests = calloc(trace->n, sizeof(*e->requests));
    e->running = calloc(model->max_running, sizeof(struct request *));
    e->emitting = calloc(model->max_running, sizeof(struct request *));
    e->ttft = calloc(trace->n, sizeof(*e->ttft));
    if (!e->requests || !e->running || !e->emitting || !e->ttft)
        return -ENOMEM;
    for (size_t i = 0; i < trace->n; i++)
        request_init(&e->requests[i], &trace->requests[i]);
    *ret_engine = steal_pointer(e);
    return 0;
}

struct engine *engine_free(struct engine *e)
{
    if (!e)
        return NULL;
    for (size_t i = 0; e->requests && i < e->n_requests; i++)
        free(e->requests[i].blocks);
    free(e->requests);
    free(e->running);
    free(e->emitting);
    free(e->scratch);
    free(e->ttft);
    free(e);
    return NULL;
}

double engine_next_arrival(const struct engine *e)
{
    return e->n_arrived < e->n_requests ? e->requests[e->n_arrived].arrival_s : (double)INFINITY;
}

void engine_arrive(struct engine *e)
{
    list_append(&e->waiting, &e->requests[e->n_arrived++].link);
}

bool engine_has_work(const struct engine *e)
{
    return e->n_running > 0 || !list_is_empty(&e->waiting);
}

bool engine_is_busy(const struct engine *e)
{
    return e->busy;
}

bool engine_is_done(const struct engine *e)
{
    return e->n_arrived == e->n_requests && !engine_has_work(e);
}

const struct engine_counts *engine_counts(const struct engine *e)
{
    return &e->counts;
}

const double *engine_ttft(const struct engine *e, size_t *ret_n)
{
    *ret_n = e->n_ttft;
    return e->ttft;
}

static int scratch_reserve(struct engine *e, size_t n)
{
    uint32_t *scratch;

    if (n <= e->max_scratch)
        return 0;
    scratch = reallocarray(e->scratch, n, sizeof(*scratch));
    if (!scratch)
        return -ENOMEM;
    e->scratch = scratch;
    e->max_scratch = n;
    return 0;
}

static int request_reserve(struct request *r, uint32_t n)
{
    uint32_t *blocks;

    if (r->n_blocks + n <= r->max_blocks)
        return 0;
    blocks = reallocarray(r->blocks, r->n_blocks + n, sizeof(*blocks));
    if (!blocks)
        return -ENOMEM;
    r->blocks = blocks;
    r->max_blocks = r->n_blocks + n;
    return 0;
}

static void request_receive(struct engine *e, struct request *r, const uint32_t *blocks, uint32_t n)
{
    if (n)
        memcpy(r->blocks + r->n_blocks, blocks, n * sizeof(*blocks));
    r->n_blocks += n;
    e->counts.used_blocks += n;
}

static int request_take(struct engine *e, struct request *r, uint32_t n)
{
    int res;

    res = request_reserve(r, n);
    if (res < 0)
        return res;
    res = scratch_reserve(e, n);
    if (res < 0)
        return res;
    res = memory_take(e->memory, n, e->scratch);
    if (res)
        return res;
    request_receive(e, r, e->scratch, n);
    return 0;
}

static int request_give_all(struct engine *e, struct request *r)
{
    uint32_t n = r->n_blocks;

    e->counts.used_blocks -= n;
    r->n_blocks = 0;
    return memory_give(e->memory, r->blocks, n, e->counts.steps);
}

static void running_remove(struct engine *e, const struct request *r)
{
    uint32_t i = 0;

    while (e->running[i] != r)
        i++;
    e->n_running--;
    memmove(e->running + i, e->running + i + 1, (e->n_running - i) * sizeof(struct request *));
}

static int preempt_youngest(struct engine *e, struct request **ret_victim)
{
    struct request *r = e->running[--e->n_running];

    r->context += r->generated;
    r->output -= r->generated;
    r->prefilled = r->generated = 0;
    list_prepend(&e->waiting, &r->link);
    e->counts.preempted++;
    e->preempted = true;
    *ret_victim = r;
    return request_give_all(e, r);
}

/* What a running request does in a step: some of its prompt, or one token. */
struct share {
    uint32_t chunk;
    uint32_t blocks; /* that it lacks for that */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct share request_share(const struct engine *e, const struct request *r, uint32_t tokens_left)
{
    uint32_t chunk = min_u32(tokens_left, r->context - r->prefilled);
    uint64_t tokens = chunk ? r->prefilled + chunk : (uint64_t)r->context + r->generated + 1;
    uint32_t blocks = model_blocks(e->model, tokens);

    return (struct share){.chunk = chunk, .blocks = blocks > r->n_blocks ? blocks - r->n_blocks : 0};
}

static void request_compute(struct engine *e, struct request *r, uint32_t chunk)
{
    r->prefilled += chunk;
    e->prefill += chunk;
    if (r->prefilled == r->context)
        e->emitting[e->n_emitting++] = r;
}

/* A decoding request spends one of the step's tokens. */
static uint32_t share_tokens(const struct share *s)
{
    return s->chunk ? s->chunk : 1;
}

static int shares_sum(struct engine *e, uint64_t *ret_blocks)
{
    uint32_t left = e->tokens_left;
    uint64_t blocks = 0;
    int r;

    for (uint32_t i = 0; i < e->n_running && left > 0; i++) {
        struct share s = request_share(e, e->running[i], left);

        r = request_reserve(e->running[i], s.blocks);
        if (r < 0)
            return r;
        blocks += s.blocks;
        left -= share_tokens(&s);
    }
    *ret_blocks = blocks;
    return 0;
}

/* All running requests at once, or MEMORY_E_SHORT and nothing has changed. */
static int continue_together(struct engine *e)
{
    const uint32_t *blocks;
    uint64_t n;
    int r;

    r = shares_sum(e, &n);
    if (r < 0)
        return r;
    r = scratch_reserve(e, n);
    if (r < 0)
        return r;
    r = memory_take(e->memory, n, e->scratch);
    if (r)
        return r;
    blocks = e->scratch;
    for (uint32_t i = 0; i < e->n_running && e->tokens_left > 0; i++) {
        struct share s = request_share(e, e->running[i], e->tokens_left);

        request_receive(e, e->running[i], blocks, s.blocks);
        blocks += s.blocks;
        request_compute(e, e->running[i], s.chunk);
        e->tokens_left -= share_tokens(&s);
    }
    return 0;
}

/* Preempts until the request has its blocks or is a victim itself. */
static int take_by_force(struct engine *e, struct request *r, uint32_t n)
{
    struct request *victim;
    int res;

    while ((res = request_take(e, r, n)) == MEMORY_E_SHORT) {
        res = preempt_youngest(e, &victim);
        if (res < 0)
            return res;
        if (victim == r)
            return MEMORY_E_SHORT;
    }
    return res;
}

static int continue_one_by_one(struct engine *e)
{
    for (uint32_t i = 0; i < e->n_running && e->tokens_left > 0; i++) {
        struct request *r = e->running[i];
        struct share s = request_share(e, r, e->tokens_left);
        int res;

        res = take_by_force(e, r, s.blocks);
        if (res < 0)
            return res;
        if (res == MEMORY_E_SHORT)
            return 0; /* it was the youngest: nobody is left after it */
        request_compute(e, r, s.chunk);
        e->tokens_left -= share_tokens(&s);
    }
    return 0;
}

/* The head of the queue; whoever could never fit is turned away. */
static struct request *next_waiting(struct engine *e, uint64_t capacity)
{
    struct request *r;

    while ((r = list_first(&e->waiting, struct request, link))) {
        if (model_blocks(e->model, (uint64_t)r->context + r->output) <= capacity)
            return r;
        list_unlink(&r->link);
        e->counts.refused++;
    }
    return NULL;
}

static int admit(struct engine *e)
{
    uint64_t capacity = memory_capacity(e->memory);
    struct request *r;
    int res;

    while (e->tokens_left > 0 && e->n_running < e->model->max_running && (r = next_waiting(e, capacity))) {
        uint32_t chunk = min_u32(e->tokens_left, r->context);

        res = request_take(e, r, model_blocks(e->model, chunk));
        if (res)
            return res == MEMORY_E_SHORT ? 0 : res;
        list_unlink(&r->link);
        e->running[e->n_running++] = r;
        e->tokens_left -= chunk;
        request_compute(e, r, chunk);
    }
    return 0;
}

int engine_step(struct engine *e)
{
    int r;

    e->tokens_left = e->model->step_tokens;
    e->prefill = e->n_emitting = 0;
    e->preempted = false;
    memory_begin(e->memory);
    r = continue_together(e);
    if (r == MEMORY_E_SHORT)
        r = continue_one_by_one(e);
    if (r == 0 && !e->preempted)
        r = admit(e);
    if (r < 0)
        return r;
    if (e->counts.used_blocks > e->counts.peak_blocks)
        e->counts.peak_blocks = e->counts.used_blocks;
    e->busy = e->n_emitting > 0 || e->prefill > 0;
    e->counts.steps += e->busy;
    return 0;
}

double engine_step_cost(const struct engine *e, unsigned sharing)
{
    const struct model *m = e->model;

    return (m->step_s + e->prefill * m->prefill_s + e->n_emitting * m->decode_s) * sharing;
}

static void request_emit(struct engine *e, struct request *r, double now)
{
    r->generated++;
    if (r->answered)
        return;
    r->answered = true;
    e->ttft[e->n_ttft++] = now - r->arrival_s;
}

/* Several requests that end with one step give back together, and the step is over. */
static int give_together(struct engine *e, struct request **requests, uint32_t n)
{
    size_t total = 0, at = 0;
    int r;

    for (uint32_t i = 0; i < n; i++)
        total += requests[i]->n_blocks;
    r = scratch_reserve(e, total);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(e->scratch + at, requests[i]->blocks, requests[i]->n_blocks * sizeof(*e->scratch));
        at += requests[i]->n_blocks;
        requests[i]->n_blocks = 0;
    }
    e->counts.used_blocks -= total;
    r = memory_give(e->memory, e->scratch, total, e->counts.steps);
    return r < 0 ? r : memory_complete(e->memory, e->counts.steps);
}

int engine_finish(struct engine *e, double now)
{
    uint32_t n_served = 0;

    for (uint32_t i = 0; i < e->n_emitting; i++) {
        struct request *r = e->emitting[i];

        request_emit(e, r, now);
        if (r->generated >= r->output) {
            running_remove(e, r);
            e->emitting[n_served++] = r;
        }
    }
    e->n_emitting = 0;
    e->counts.served += n_served;
    return give_together(e, e->emitting, n_served);
}

int engine_abandon(struct engine *e)
{
    uint32_t n = e->n_running;

    e->n_running = e->n_emitting = 0;
    e->busy = false;
    return give_together(e, e->running, n);
}
