/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A transaction over ranks cannot be undone: by the time one rank fails, another has mapped, and to unmap
 * there could fail as well. So nothing is undone. What each rank has is kept exactly (group_state.c), memory
 * that a rank holds for a page that is not whole stays charged to it, and to try again costs only what is
 * missing. Whether to try again, or to give back what there is, is the caller's decision.
 *
 * Ranks are waited for one after the other, each until the time that its own client allows, counted from when
 * the first one was asked. Nothing is lost by the order: answers queue in their sockets meanwhile, and a wait
 * whose time is over takes what has come before it gives up.
 *
 * A rank that has not answered leaves a doubt: the call, and the pages that it was asked about. It is looked
 * at again before each transaction, and by group_poll(). The end of a connection answers all its calls; then
 * the rank is lost, and what it had mapped counts as gone. So it is when the daemon says that the worker is
 * gone; then nothing will ever be mapped at all ranks again, and the group is over. It is still good for
 * unmapping what the others have.
 *
 * The group's lock is not held while a rank is asked or waited for: claims keep two transactions from the
 * same page. Where both are taken, the group's comes before a client's.
 */

#include "group.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "remote.h"

struct group {
    pthread_mutex_t lock;
    struct group_state *state;
    struct list doubts; /* struct part */
    size_t n_doubts;
    uint64_t pages;
    atomic_bool over; /* for ever; written with the lock, once the two below are */
    uint32_t over_rank;
    char reason[ERROR_SENTENCE_MAX];
    bool *late; /* by rank: it has left unanswered what was abandoned, and is not waited for again */
    uint32_t n;
    struct kvc_region *regions[];
};

/* What a transaction wants of a rank. */
struct part {
    struct list link; /* of the group's doubts, while it is one */
    uint32_t rank;
    struct remote_call *call; /* NULL: not under way */
    uint64_t deadline_ns;
    bool map;
    int error;
    char reason[ERROR_SENTENCE_MAX];
    size_t n;
    uint64_t pages[];
};

struct transaction {
    struct group *group;
    bool leased;
    struct part *parts[]; /* by rank */
};

/* ---- Making and ending ---- */

static bool is_forked(const struct group *group)
{
    return client_is_forked(group->regions[0]->client);
}

static int refuse_forked(void)
{
    return error_set(KVC_E_FORKED,
                     "The handle belongs to the process that opened it, not to its forked child");
}

static int check_regions(struct kvc_region *const *regions, uint32_t n)
{
    if (n < 1)
        return error_set(KVC_E_INVALID, "A group needs at least one region");
    for (uint32_t i = 0; i < n; i++)
        if (!regions[i])
            return error_set(KVC_E_INVALID, "A region of the group is missing");
    for (uint32_t i = 0; i < n; i++)
        if (client_is_forked(regions[i]->client))
            return refuse_forked();
    return 0;
}

int group_new(struct kvc_region *const *regions, uint32_t n, struct group **ret)
{
    struct group *group;
    int r;

    r = check_regions(regions, n);
    if (r < 0)
        return r;
    group = calloc(1, sizeof(*group) + n * sizeof(group->regions[0]));
    if (!group)
        return error_nomem();
    group->n = n;
    memcpy(group->regions, regions, n * sizeof(group->regions[0]));
    group->pages = UINT64_MAX;
    for (uint32_t i = 0; i < n; i++)
        group->pages = u64_min(group->pages, kvc_region_pages(regions[i]));
    group->late = calloc(n, sizeof(*group->late));
    if (!group->late || group_state_new(group->pages, n, &group->state) < 0) {
        free(group->late);
        free(group);
        return error_nomem();
    }
    list_init(&group->doubts);
    pthread_mutex_init(&group->lock, NULL);
    *ret = group;
    return 0;
}

/* If some thread of the parent was at work when it forked, its work is half done for ever. */
static struct group *group_forget(struct group *group)
{
    if (pthread_mutex_trylock(&group->lock) != 0)
        return NULL;
    list_for_each_safe (it, &group->doubts) {
        struct part *part = container_of(it, struct part, link);

        remote_call_forget(part->call);
        free(part);
    }
    group_state_free(group->state);
    free(group->late);
    free(group);
    return NULL;
}

struct group *group_free(struct group *group)
{
    if (!group)
        return NULL;
    if (is_forked(group))
        return group_forget(group);
    list_for_each_safe (it, &group->doubts) {
        struct part *part = container_of(it, struct part, link);

        remote_call_free(part->call);
        free(part);
    }
    pthread_mutex_destroy(&group->lock);
    group_state_free(group->state);
    free(group->late);
    free(group);
    return NULL;
}

uint64_t group_pages(const struct group *group)
{
    return group->pages;
}

/* ---- Answers ---- */

static void end(struct group *group, uint32_t rank, const char *reason)
{
    if (group->over)
        return;
    group->over_rank = rank;
    snprintf(group->reason, sizeof(group->reason), "Rank %" PRIu32 ": %s", rank, reason);
    atomic_store(&group->over, true);
}

/* A rank's answer is there, or will never come. With the group's lock. */
static void settle(struct group *group, const struct part *part, bool done)
{
    const struct kvc_region *region = group->regions[part->rank];
    const char *over = part->call ? remote_call_over(part->call) : NULL;

    if (over)
        end(group, part->rank, over);
    if (over || (!done && region->remote && remote_is_gone(region)))
        group_state_lose(group->state, part->rank);
    else
        group_state_settle(group->state, part->rank, part->pages, part->n, done);
}

bool group_is_over(const struct group *group)
{
    return atomic_load_explicit(&group->over, memory_order_acquire);
}

int group_check(const struct group *group)
{
    return group_is_over(group) ? error_set(KVC_E_WORKER_GONE, "%s", group->reason) : 0;
}

static void settle_now(struct group *group, const struct part *part, bool done)
{
    pthread_mutex_lock(&group->lock);
    settle(group, part, done);
    pthread_mutex_unlock(&group->lock);
}

/* With the group's lock. */
static void take_late_answers(struct group *group)
{
    error_hold();
    list_for_each_safe (it, &group->doubts) {
        struct part *part = container_of(it, struct part, link);
        bool answered = false;
        int r = remote_call_poll(part->call, &answered);

        if (!answered)
            continue;
        settle(group, part, r == 0);
        remote_call_free(part->call);
        list_unlink(&part->link);
        group->n_doubts--;
        free(part);
    }
    error_release();
}

/* Orders are carried out one after the other, each wholly or not at all. */
static void abandon(struct group *group, struct part *part)
{
    struct kvc_region *region = group->regions[part->rank];
    struct remote_call *undo = NULL;

    if (part->map && remote_unmap_begin(region, part->pages, part->n, &undo) == 0)
        remote_call_free(undo);
    group->late[part->rank] = true;
    settle(group, part, !part->map);
    remote_call_free(part->call);
    list_unlink(&part->link);
    group->n_doubts--;
    free(part);
}

void group_abandon(struct group *group)
{
    if (is_forked(group))
        return;
    pthread_mutex_lock(&group->lock);
    take_late_answers(group);
    error_hold();
    list_for_each_safe (it, &group->doubts)
        abandon(group, container_of(it, struct part, link));
    error_release();
    pthread_mutex_unlock(&group->lock);
}

int group_poll(struct group *group, size_t *ret_left)
{
    if (is_forked(group))
        return refuse_forked();
    pthread_mutex_lock(&group->lock);
    take_late_answers(group);
    *ret_left = group->n_doubts;
    pthread_mutex_unlock(&group->lock);
    return 0;
}

/* ---- Transactions ---- */

static void transaction_free(struct transaction *t)
{
    for (uint32_t i = 0; t && i < t->group->n; i++)
        free(t->parts[i]);
    free(t);
}

/* Everything that it can need, so that nothing is missing when a rank has been asked. */
static struct transaction *transaction_new(struct group *group, bool map, bool leased, size_t n)
{
    struct transaction *t = calloc(1, sizeof(*t) + group->n * sizeof(t->parts[0]));

    if (!t)
        return NULL;
    t->group = group;
    t->leased = leased;
    for (uint32_t i = 0; i < group->n; i++) {
        t->parts[i] = calloc(1, sizeof(struct part) + n * sizeof(uint64_t));
        if (!t->parts[i]) {
            transaction_free(t);
            return NULL;
        }
        t->parts[i]->rank = i;
        t->parts[i]->map = map;
    }
    return t;
}

static void divide(struct transaction *t, const uint64_t *pages, size_t n)
{
    pthread_mutex_lock(&t->group->lock);
    for (uint32_t i = 0; i < t->group->n; i++)
        t->parts[i]->n = group_state_ask(t->group->state, i, pages, n, t->parts[i]->map, t->parts[i]->pages);
    pthread_mutex_unlock(&t->group->lock);
}

static void note(struct part *part, int error)
{
    part->error = error;
    if (error < 0)
        snprintf(part->reason, sizeof(part->reason), "%s", kvc_last_error());
}

static void ask(struct transaction *t, struct part *part)
{
    struct kvc_region *region = t->group->regions[part->rank];
    int r;

    part->deadline_ns = t->group->late[part->rank] ? 0 : remote_deadline(region);
    if (part->map)
        r = remote_map_begin(region, part->pages, part->n, t->leased, &part->call);
    else
        r = remote_unmap_begin(region, part->pages, part->n, &part->call);
    note(part, r);
    if (r < 0)
        settle_now(t->group, part, false);
}

/* A region of this process. What it doesn't confirm to the daemon it has unmapped all the same. */
static void do_here(struct transaction *t, struct part *part)
{
    struct kvc_region *region = t->group->regions[part->rank];
    int r;

    r = part->map ? kvc_region_map(region, part->pages, part->n)
                  : kvc_region_unmap(region, part->pages, part->n);
    note(part, r);
    settle_now(t->group, part, r == 0 || (!part->map && (error_is_unanswered(r) || r == KVC_E_DISCONNECTED)));
}

static void hear(struct transaction *t, struct part *part)
{
    bool answered = false;

    note(part, remote_call_wait(part->call, part->deadline_ns, &answered));
    if (!answered)
        return;
    settle_now(t->group, part, part->error == 0);
    part->call = remote_call_free(part->call);
}

static bool is_remote(const struct transaction *t, const struct part *part)
{
    return t->group->regions[part->rank]->remote != NULL;
}

static int first_error(const struct transaction *t)
{
    for (uint32_t i = 0; i < t->group->n; i++)
        if (t->parts[i]->error < 0)
            return error_set(t->parts[i]->error, "Rank %" PRIu32 ": %s", i, t->parts[i]->reason);
    return 0;
}

/* Each step for all ranks before the next. Returns the error of the first rank that has one. */
static int run(struct transaction *t)
{
    for (uint32_t i = 0; i < t->group->n; i++)
        if (t->parts[i]->n > 0 && is_remote(t, t->parts[i]))
            ask(t, t->parts[i]);
    for (uint32_t i = 0; i < t->group->n; i++)
        if (t->parts[i]->n > 0 && !is_remote(t, t->parts[i]))
            do_here(t, t->parts[i]);
    for (uint32_t i = 0; i < t->group->n; i++)
        if (t->parts[i]->call)
            hear(t, t->parts[i]);
    return first_error(t);
}

/* Calls that are still under way are the group's from now on. */
static void keep_doubts(struct transaction *t)
{
    pthread_mutex_lock(&t->group->lock);
    for (uint32_t i = 0; i < t->group->n; i++) {
        if (!t->parts[i]->call)
            continue;
        list_append(&t->group->doubts, &t->parts[i]->link);
        t->group->n_doubts++;
        t->parts[i] = NULL;
    }
    pthread_mutex_unlock(&t->group->lock);
}

/* What was spent on pages that no rank has been asked about. */
static void put_claims_back(struct group *group, const uint64_t *pages, size_t n)
{
    for (uint32_t i = 0; i < group->n; i++) {
        struct kvc_region *region = group->regions[i];
        size_t missing = group_missing(group, i, pages, n);

        /* How much was spent on a lost one is not known any more. */
        if ((group_is_over(group) && i == group->over_rank) || client_enter(region->client) < 0)
            continue;
        lease_put_back(region, missing);
        client_leave(region->client);
    }
}

static int transact(struct group *group, const uint64_t *pages, size_t n, bool map, bool leased)
{
    struct transaction *t = transaction_new(group, map, leased, n);
    int r;

    if (!t && leased)
        put_claims_back(group, pages, n);
    if (!t)
        return error_nomem();
    divide(t, pages, n);
    r = run(t);
    keep_doubts(t);
    transaction_free(t);
    return r;
}

static int explain(int r, const struct group *group, uint64_t page, bool map)
{
    switch (r) {
    case 0:
        return 0;
    case GROUP_E_RANGE:
        return error_set(KVC_E_INVALID, "There is no page %" PRIu64 " at every rank, but %" PRIu64, page,
                         group->pages);
    case GROUP_E_DOUBT:
        return error_set(KVC_E_IN_DOUBT, "A rank has not answered about page %" PRIu64, page);
    case GROUP_E_MAPPED:
        return error_set(KVC_E_MAPPED, "Page %" PRIu64 " is mapped at every rank", page);
    case GROUP_E_NOT_MAPPED:
        return error_set(KVC_E_NOT_MAPPED, "Page %" PRIu64 " is mapped at no rank", page);
    default:
        return error_set(map ? KVC_E_MAPPED : KVC_E_NOT_MAPPED,
                         "Page %" PRIu64 " is named twice, or another thread is at work on it", page);
    }
}

static int claim(struct group *group, const uint64_t *pages, size_t n, bool map)
{
    uint64_t culprit = 0;
    bool over;
    int r;

    pthread_mutex_lock(&group->lock);
    take_late_answers(group);
    over = map && group_is_over(group);
    r = over ? 0 : group_state_claim(group->state, pages, n, map, &culprit);
    pthread_mutex_unlock(&group->lock);
    return over ? group_check(group) : explain(r, group, culprit, map);
}

static int change(struct group *group, const uint64_t *pages, size_t n, bool map, bool leased)
{
    size_t next = 0;
    int r;

    if (is_forked(group))
        return refuse_forked();
    r = claim(group, pages, n, map);
    if (r < 0) {
        if (leased)
            put_claims_back(group, pages, n);
        return r;
    }
    while (next < n && r == 0) {
        size_t some = u64_min(n - next, REMOTE_PAGES_MAX);

        r = transact(group, pages + next, some, map, leased);
        next += some;
    }
    if (leased)
        put_claims_back(group, pages + next, n - next);
    pthread_mutex_lock(&group->lock);
    group_state_release(group->state, pages, n);
    pthread_mutex_unlock(&group->lock);
    return r;
}

int group_map(struct group *group, const uint64_t *pages, size_t n, bool leased)
{
    for (uint32_t i = 0; i < group->n && leased; i++)
        if (!group->regions[i]->remote)
            return error_set(KVC_E_INVALID, "Rank %" PRIu32 " is of this process: its lease is its own", i);
    return change(group, pages, n, true, leased);
}

int group_unmap(struct group *group, const uint64_t *pages, size_t n)
{
    return change(group, pages, n, false, false);
}

/* ---- What there is to know ---- */

size_t group_missing(struct group *group, uint32_t rank, const uint64_t *pages, size_t n)
{
    size_t missing = 0;

    pthread_mutex_lock(&group->lock);
    for (size_t i = 0; i < n; i++)
        missing += group_state_rank(group->state, pages[i], rank) == GROUP_RANK_EMPTY;
    pthread_mutex_unlock(&group->lock);
    return missing;
}

enum group_page_state group_page(struct group *group, uint64_t page)
{
    enum group_page_state state;

    pthread_mutex_lock(&group->lock);
    state = group_state_page(group->state, page);
    pthread_mutex_unlock(&group->lock);
    return state;
}

enum group_rank_state group_page_at(struct group *group, uint64_t page, uint32_t rank)
{
    enum group_rank_state state;

    pthread_mutex_lock(&group->lock);
    state = group_state_rank(group->state, page, rank);
    pthread_mutex_unlock(&group->lock);
    return state;
}
