/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Admission: may a request have what it asks for?
 *
 * It is judged by limit and budget alone. Where one of them does not hold it, memory is looked for that its
 * owners can do without, in this order: leases that are asked for out of courtesy give way, offers are
 * withdrawn (of the same instance for its limit, of anybody for the budget), and peers that could give back
 * more are asked to. All of it is weighed first, so that nobody loses anything to a request that has to be
 * refused anyway.
 *
 * While others are waited for, the request is undecided, and not charged. Undecided ones are judged again
 * after every event, in order of arrival: one that lacks what an earlier one lacks, too, stands behind it,
 * when it comes and later; one that fits passes. Once it is first, each waits for two rounds at most, and is
 * refused when there is nothing left to hope for. In the first round as few are asked as might be enough, and
 * more as soon as one has answered with less than it seemed to have. Who needs a second round has met
 * somebody who is stuck, or lies, and asks all others at once: so nobody honest is left unasked, however many
 * lie.
 */

#include "base/arith.h"
#include "broker-internal.h"

#define HOPEFUL_MAX 64 /* undecided requests of an instance, who are looked at again and again */

/* 0, or what doesn't hold it, and by how much. */
static int find_shortage(const struct broker *broker, const struct broker_request *request,
                         uint64_t *ret_bytes)
{
    const struct broker_instance *instance = request->peer->instance;
    uint64_t limit = policy_limit(instance->has_limit, instance->limit_of, NULL);
    uint64_t used = broker_used(instance), charged = broker->ledger.charged_bytes;

    if (instance->reserved_bytes | request->foreign_bytes)
        return reservations_find_shortage(broker, request, ret_bytes);
    switch (policy_admit(used, limit, charged, broker->budget.bytes, request->bytes)) {
    case POLICY_E_LIMIT:
        *ret_bytes = u64_sub_floor(u64_add_ceil(used, request->bytes), limit);
        return BROKER_E_LIMIT;
    case POLICY_E_BUDGET:
        *ret_bytes = u64_sub_floor(u64_add_ceil(charged, request->bytes), broker->budget.bytes);
        return BROKER_E_BUDGET;
    }
    return 0;
}

static uint32_t *n_undecided(struct broker *broker, struct broker_request *request)
{
    return request->error == BROKER_E_LIMIT ? &request->peer->instance->n_undecided : &broker->n_undecided;
}

/* Does an earlier one lack the same? Its own turn to wait for others begins after that. */
static bool is_behind(struct broker *broker, struct broker_request *request)
{
    if (*n_undecided(broker, request) == 0)
        return false;
    list_unlink(&request->stall_link);
    request->asks_all = false;
    return true;
}

static bool round_is_over(const struct broker *broker, const struct broker_request *request)
{
    return !list_is_empty(&request->stall_link) &&
           broker->now_ns - request->stalled_ns >= broker->config.courtesy_ns;
}

static bool is_late(const struct broker *broker, const struct broker_request *request)
{
    return request->asks_all && round_is_over(broker, request);
}

static void begin_second_round(struct broker_request *request)
{
    list_unlink(&request->stall_link);
    request->asks_all = true;
}

static void wait_for_others(struct broker *broker, struct broker_request *request,
                            struct broker_instance *scope, uint64_t bytes)
{
    if (list_is_empty(&request->stall_link)) {
        request->stalled_ns = broker->now_ns;
        list_append(&broker->hopeful, &request->stall_link);
    }
    notices_ask(broker, scope, request, bytes);
}

/* What others could give back for it, as far as `enough`. */
static uint64_t hope_for(struct broker *broker, const struct broker_request *request,
                         struct broker_instance *scope, uint64_t enough)
{
    return is_late(broker, request) ? 0 : notices_hope(broker, scope, request, enough);
}

/* Makes room of what is offered. 0: enough; else the request's error, and *ret_undecided if others could
 * still give enough, and have been asked. */
static int make_room(struct broker *broker, struct broker_request *request, uint64_t lacking,
                     bool *ret_undecided)
{
    struct broker_instance *scope = request->error == BROKER_E_LIMIT ? request->peer->instance : NULL;
    uint64_t offered = leases_offered(broker, scope, request->lease);
    int r;

    if (round_is_over(broker, request) && !request->asks_all)
        begin_second_round(request);
    if (offered < lacking && hope_for(broker, request, scope, lacking - offered) < lacking - offered)
        return request->error;
    if (find_shortage(broker, request, &lacking) == request->error)
        leases_withdraw(broker, scope, request->lease, lacking);
    r = find_shortage(broker, request, &lacking);
    if (r != request->error)
        return 0;
    /* Offers that were claimed meanwhile can be asked for. */
    *ret_undecided = hope_for(broker, request, scope, 1) > 0;
    if (*ret_undecided)
        wait_for_others(broker, request, scope, lacking);
    return r;
}

/* 0: admitted; else an error, which may not be the last word. */
static int judge(struct broker *broker, struct broker_request *request, bool *ret_undecided)
{
    uint64_t lacking = 0;
    int r;

    request->judged_touches = broker->n_touches;
    *ret_undecided = false;
    if (request->lease && !lease_is_open(broker, request->lease))
        return BROKER_E_NOT_LEASED;
    if (request->lease && !leases_fit_descriptors(broker, request))
        return BROKER_E_DESCRIPTORS;
    while ((r = find_shortage(broker, request, &lacking))) {
        request->error = r;
        if (request->courtesy)
            return r;
        /* Others' courtesies are no matter of its own limit. */
        if (queue_yield(broker, r == BROKER_E_LIMIT ? request->peer->instance : NULL))
            continue;
        *ret_undecided = is_behind(broker, request);
        if (*ret_undecided)
            return r;
        r = make_room(broker, request, lacking, ret_undecided);
        if (r)
            return r;
    }
    return 0;
}

static void admit(struct broker *broker, struct broker_request *request)
{
    struct broker_instance *instance = request->peer->instance;

    list_unlink(&request->stall_link);
    request->error = 0;
    if (request->reserves) {
        reservation_admit(broker, request);
        return;
    }
    if (instance->reserved_bytes)
        reservations_draw(broker, request);
    ledger_charge_init(&broker->ledger, &request->charge, &instance->account, LEDGER_PENDING, request->bytes);
    instance_touch(broker, instance);
    queue_enqueue(broker, request);
}

static void count_undecided(struct broker *broker, struct broker_request *request, int n)
{
    *n_undecided(broker, request) += n;
    request->peer->instance->n_hopeful += n;
}

static void leave_undecided(struct broker *broker, struct broker_request *request)
{
    request->state = BROKER_REQUEST_UNDECIDED;
    list_append(&broker->undecided, &request->link);
    count_undecided(broker, request, 1);
}

/* Another may be the first now. */
void admission_forget(struct broker *broker, struct broker_request *request)
{
    count_undecided(broker, request, -1);
    list_unlink(&request->link);
    list_unlink(&request->stall_link);
    broker->n_touches++;
}

int admission_ask(struct broker *broker, struct broker_request *request)
{
    bool undecided;
    int r;

    /* Courtesy is for when nobody else needs anything. */
    if (request->courtesy && !queue_is_at_ease(broker, request))
        return BROKER_E_BUDGET;
    request->serial = ++broker->need_serial;
    r = judge(broker, request, &undecided);
    if (r && (!undecided || request->peer->instance->n_hopeful >= HOPEFUL_MAX)) {
        list_unlink(&request->stall_link);
        return r;
    }
    list_append(&broker->arrivals, &request->arrival_link);
    if (undecided)
        leave_undecided(broker, request);
    else
        admit(broker, request);
    return 0;
}

/* Is there anything to be judged anew? What an instance's limit doesn't hold is its own affair. Whoever has
 * not waited for others so far is first since an earlier one has its answer. */
static bool is_stale(const struct broker *broker, const struct broker_request *request)
{
    uint64_t touched =
        request->error == BROKER_E_LIMIT ? request->peer->instance->touched : broker->n_touches;

    return touched > request->judged_touches || list_is_empty(&request->stall_link) ||
           round_is_over(broker, request);
}

static int judge_again(struct broker *broker, struct broker_request *request, bool *ret_undecided)
{
    *ret_undecided = is_behind(broker, request) || !is_stale(broker, request);
    return *ret_undecided ? request->error : judge(broker, request, ret_undecided);
}

static bool is_all_settled(const struct broker *broker)
{
    return list_is_empty(&broker->undecided) ||
           (broker->settled_touches == broker->n_touches &&
            !round_is_over(broker, list_first(&broker->hopeful, struct broker_request, stall_link)));
}

/* Those who lack what an earlier one lacks are counted behind it again, unjudged. */
void admission_settle(struct broker *broker)
{
    struct list waiting = LIST_INIT(waiting);
    struct broker_request *request;

    if (is_all_settled(broker))
        return;
    broker->settled_touches = broker->n_touches;
    list_for_each (it, &broker->undecided)
        count_undecided(broker, container_of(it, struct broker_request, link), -1);
    list_splice(&waiting, &broker->undecided);
    while ((request = list_first(&waiting, struct broker_request, link))) {
        bool undecided;
        int r = judge_again(broker, request, &undecided);

        list_unlink(&request->link);
        if (undecided) {
            leave_undecided(broker, request);
        } else if (r) {
            leave_undecided(broker, request);
            queue_refuse(broker, request, r);
        } else {
            admit(broker, request);
        }
    }
}
