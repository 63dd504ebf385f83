/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Leases: extents that are set aside for a region before anybody asks for them by name.
 *
 * A lease grows as a request does, through the same queue, and holds whole pages. What it holds is charged to
 * its instance, is warm, and has not been handed over: whatever becomes of the lease, its extents return to
 * the pool in the colour that they had. How much of it is offered, and how much claimed, stands in a word
 * that the client changes too. Offers are withdrawn from it at once, without asking, when others are short or
 * nobody needs the pool; claims are the client's until it gives them back, spends them, or is lost.
 *
 * The word is never believed beyond what the books say was issued. One that claims more was scribbled over:
 * it is put right, all of the lease returns to the pool, and the lease stays frozen. What was taken off the
 * word and not yet asked for is in neither half of it; nobody else can have that either.
 *
 * Leases with something issued are listed, longest unused first, so that nobody looks at empty ones. Their
 * descriptors have a bound of their own, beside that of pool and requests, or leases could starve grants. Of
 * that each domain has a share, and in it each instance (policy.c), since claims are nobody else's to take.
 */

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

#include "base/arith.h"
#include "broker-internal.h"

uint32_t broker_lease_pages(const struct broker_lease *lease)
{
    return lease->issued;
}

bool broker_lease_is_frozen(const struct broker_lease *lease)
{
    return lease->frozen;
}

static bool has_classes(const struct broker *broker, const uint32_t *page_counts)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        if (page_counts[i] && i >= broker->config.n_classes)
            return false;
        n += page_counts[i];
    }
    return n && n <= BROKER_REQUEST_EXTENTS_MAX;
}

int broker_lease_new(struct broker *broker, struct broker_peer *peer,
                     const uint32_t page_counts[static BROKER_CLASSES_MAX], struct lease_line *line,
                     struct broker_lease **ret)
{
    struct broker_lease *lease;

    if (peer->lost || !has_classes(broker, page_counts))
        return BROKER_E_INVALID;
    lease = calloc(1, sizeof(*lease));
    if (!lease)
        return -ENOMEM;
    lease->peer = peer;
    lease->line = line;
    list_init(&lease->issued_link);
    list_init(&lease->instance_link);
    list_init(&lease->report_link);
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        list_init(&lease->extents[i]);
        lease->page_counts[i] = page_counts[i];
        lease->page_extents += page_counts[i];
        if (page_counts[i])
            lease->page_bytes += page_counts[i] * broker->config.class_bytes[i];
    }
    list_append(&peer->leases, &lease->link);
    *ret = lease;
    return 0;
}

/* ---- What is issued ---- */

void lease_count(struct broker *broker, struct broker_instance *instance, int n_leased, int n_leasing)
{
    broker->n_leased += n_leased;
    broker->n_leasing += n_leasing;
    instance->n_set_aside += n_leased + n_leasing;
    instance->domain->n_set_aside += n_leased + n_leasing;
}

static void mark_used(struct broker *broker, struct broker_lease *lease)
{
    list_unlink(&lease->issued_link);
    list_unlink(&lease->instance_link);
    if (lease->issued == 0)
        return;
    list_append(&broker->leases, &lease->issued_link);
    list_append(&lease->peer->instance->leases, &lease->instance_link);
}

static void issue(struct broker_lease *lease, int pages)
{
    lease->issued += pages;
    lease->peer->n_issued += pages;
}

static struct extent *remove_extent(struct broker *broker, struct broker_lease *lease, unsigned class_index)
{
    struct extent *extent = container_of(lease->extents[class_index].prev, struct extent, link);

    list_unlink(&extent->link);
    extent->state = EXTENT_LOOSE;
    extent->holder = NULL;
    ledger_charge_move(&broker->ledger, &extent->charge, NULL, LEDGER_POOL);
    lease_count(broker, lease->peer->instance, -1, 0);
    return extent;
}

static void give_back(struct broker *broker, struct broker_lease *lease, uint32_t pages)
{
    if (pages == 0)
        return;
    issue(lease, -(int)pages);
    if (lease->issued == 0)
        mark_used(broker, lease);
    for (unsigned i = broker->config.n_classes; i-- > 0;)
        for (uint32_t k = 0; k < pages * lease->page_counts[i]; k++)
            queue_offer(broker, NULL, remove_extent(broker, lease, i));
    instance_touch(broker, lease->peer->instance);
}

static void take_all_back(struct broker *broker, struct broker_lease *lease)
{
    atomic_store(&lease->line->word, 0);
    give_back(broker, lease, lease->issued);
}

static void freeze(struct broker *broker, struct broker_lease *lease)
{
    lease->frozen = true;
    list_append(&broker->scribbled, &lease->report_link);
    take_all_back(broker, lease);
}

/* False when the word says more than was issued; then nothing is, any more. */
static bool read_word(struct broker *broker, struct broker_lease *lease, struct lease *ret)
{
    *ret = lease_read(lease->line);
    if ((uint64_t)ret->offered + ret->claimed <= lease->issued)
        return true;
    if (!lease->frozen)
        freeze(broker, lease);
    *ret = (struct lease){};
    return false;
}

uint64_t lease_claimed_bytes(struct broker *broker, struct broker_lease *lease)
{
    struct lease word;

    read_word(broker, lease, &word);
    return word.claimed * lease->page_bytes;
}

/* ---- Withdrawing ---- */

static struct broker_lease *of_list(struct list *it, const struct broker_instance *instance)
{
    return instance ? container_of(it, struct broker_lease, instance_link)
                    : container_of(it, struct broker_lease, issued_link);
}

uint64_t leases_offered(struct broker *broker, struct broker_instance *instance,
                        const struct broker_lease *except)
{
    uint64_t bytes = 0;

    list_for_each_safe (it, instance ? &instance->leases : &broker->leases) {
        struct broker_lease *lease = of_list(it, instance);
        uint64_t issued_bytes = lease->issued * lease->page_bytes;
        struct lease word;

        if (!read_word(broker, lease, &word))
            bytes += issued_bytes;
        else if (lease != except)
            bytes += word.offered * lease->page_bytes;
    }
    return bytes;
}

static uint64_t withdraw(struct broker *broker, struct broker_lease *lease, uint64_t bytes)
{
    uint64_t pages = bytes / lease->page_bytes + (bytes % lease->page_bytes > 0);
    uint64_t issued_bytes = lease->issued * lease->page_bytes;
    struct lease word;
    uint32_t n;

    if (!read_word(broker, lease, &word))
        return issued_bytes;
    n = lease_withdraw(lease->line, (uint32_t)u64_min(pages, lease->issued));
    give_back(broker, lease, n);
    return n * lease->page_bytes;
}

uint64_t leases_withdraw(struct broker *broker, struct broker_instance *instance,
                         const struct broker_lease *except, uint64_t bytes)
{
    uint64_t withdrawn = 0;

    list_for_each_safe (it, instance ? &instance->leases : &broker->leases) {
        struct broker_lease *lease = of_list(it, instance);

        if (withdrawn >= bytes)
            break;
        if (lease != except)
            withdrawn += withdraw(broker, lease, bytes - withdrawn);
    }
    return withdrawn;
}

/* ---- Descriptors ---- */

/* Extents, by whose they are as an instance sees it. */
struct crowd {
    uint64_t own, mates, others;
};

static void crowd_add(struct crowd *crowd, const struct broker_instance *self,
                      const struct broker_instance *instance, uint64_t n)
{
    if (instance == self)
        crowd->own += n;
    else if (instance->domain == self->domain)
        crowd->mates += n;
    else
        crowd->others += n;
}

/* How many too many there would be with the request, if some were gone. */
static uint64_t descriptors_over(const struct broker *broker, const struct broker_request *request,
                                 const struct crowd *gone)
{
    const struct broker_instance *self = request->peer->instance;
    uint64_t all = (uint64_t)broker->n_leased + broker->n_leasing;
    struct crowd crowd = {
        .own = self->n_set_aside - gone->own,
        .mates = self->domain->n_set_aside - self->n_set_aside - gone->mates,
        .others = all - self->domain->n_set_aside - gone->others,
    };

    return u64_sub_floor(crowd.own + request->n_extents,
                         policy_lease_share(broker->config.lease_max, crowd.others, crowd.mates));
}

static uint64_t over_now(const struct broker *broker, const struct broker_request *request)
{
    return descriptors_over(broker, request, &(struct crowd){});
}

/* What others could be asked for: claims of the same domain. Whose they are, they may keep, for a share is a
 * share; but most don't need them all the time. */
static bool is_asked_for(const struct broker_lease *lease, const struct broker_request *request)
{
    const struct broker_peer *peer = lease->peer;

    return peer != request->peer && peer->listens && !peer->missed &&
           peer->instance->domain == request->peer->instance->domain;
}

static void count_offers(struct broker *broker, const struct broker_request *request, struct crowd *offered,
                         struct crowd *with_claims)
{
    list_for_each_safe (it, &broker->leases) {
        struct broker_lease *lease = of_list(it, NULL);
        struct broker_instance *instance = lease->peer->instance;
        uint64_t n_offered, n_claimed;
        struct lease word;

        if (lease == request->lease || !read_word(broker, lease, &word))
            continue;
        n_offered = (uint64_t)word.offered * lease->page_extents;
        n_claimed = is_asked_for(lease, request) ? (uint64_t)word.claimed * lease->page_extents : 0;
        crowd_add(offered, request->peer->instance, instance, n_offered);
        crowd_add(with_claims, request->peer->instance, instance, n_offered + n_claimed);
    }
}

/* Only a part of what is withdrawn from others is room for this one, so it is tried until there is enough. */
static void withdraw_descriptors(struct broker *broker, const struct broker_request *request,
                                 const struct broker_domain *domain_or_null)
{
    list_for_each_safe (it, &broker->leases) {
        struct broker_lease *lease = of_list(it, NULL);
        uint64_t over, n_bytes = 1;

        if (lease == request->lease || (domain_or_null && lease->peer->instance->domain != domain_or_null))
            continue;
        while (n_bytes && (over = over_now(broker, request)))
            n_bytes = withdraw(broker, lease,
                               (over + lease->page_extents - 1) / lease->page_extents * lease->page_bytes);
    }
}

bool leases_fit_descriptors(struct broker *broker, const struct broker_request *request)
{
    struct crowd offered = {}, with_claims = {};

    if (over_now(broker, request) == 0)
        return true;
    if (request->courtesy)
        return false;
    queue_yield(broker, NULL);
    count_offers(broker, request, &offered, &with_claims);
    if (descriptors_over(broker, request, &offered) == 0) {
        withdraw_descriptors(broker, request, request_domain(request));
        withdraw_descriptors(broker, request, NULL);
    } else if (descriptors_over(broker, request, &with_claims) == 0) {
        notices_ask_claims(broker, request->peer);
    }
    return over_now(broker, request) == 0;
}

/* ---- Growing ---- */

static void receive(struct broker *broker, struct broker_lease *lease, struct extent *extent)
{
    ledger_charge_move(&broker->ledger, &extent->charge, &lease->peer->instance->account, LEDGER_LEASED);
    broker->earmarked_bytes -= extent_bytes(&broker->pool, extent);
    lease_count(broker, lease->peer->instance, 1, 0);
    extent->state = EXTENT_LEASED;
    extent->holder = lease;
    list_append(&lease->extents[extent->class_index], &extent->link);
}

bool lease_is_open(struct broker *broker, struct broker_lease *lease)
{
    struct lease word;

    return lease->peer && !lease->frozen && read_word(broker, lease, &word);
}

/* Issued before it is offered: a word never says more than the books. */
void lease_receive(struct broker *broker, struct broker_request *request)
{
    struct broker_lease *lease = request->lease;

    queue_complete(broker, request);
    if (lease->peer->n_issued == 0)
        lease->peer->issued_ns = broker->now_ns;
    broker->counters.n_leases++;
    broker->counters.leased_bytes += request->bytes;
    histogram_add(&broker->counters.waits, u64_sub_floor(broker->now_ns, request->since_ns));
    for (uint32_t i = 0; i < request->n_extents; i++)
        receive(broker, lease, pool_extent_find(&broker->pool, request->extents[i]));
    issue(lease, (int)request->pages);
    mark_used(broker, lease);
    broker->may_offer = true;
    broker_note_activity(broker);
    instance_touch(broker, lease->peer->instance);
    if (!lease_offer(lease->line, request->pages))
        freeze(broker, lease);
}

/* ---- Handing over ---- */

/* Pages that were taken off the word and not asked for so far. */
static uint32_t in_transit(struct broker *broker, struct broker_lease *lease)
{
    struct lease word;

    return read_word(broker, lease, &word) ? lease->issued - word.offered - word.claimed : 0;
}

void lease_forgo(struct broker *broker, struct broker_lease *lease, uint32_t pages)
{
    if (lease->peer)
        give_back(broker, lease, (uint32_t)u64_min(pages, in_transit(broker, lease)));
}

uint64_t lease_spent_bytes(struct broker *broker, struct broker_lease *lease)
{
    return in_transit(broker, lease) * lease->page_bytes;
}

void lease_fill_request(struct broker *broker, struct broker_lease *lease, struct broker_request *request)
{
    uint32_t slot = 0;

    for (unsigned i = broker->config.n_classes; i-- > 0;)
        for (uint32_t k = 0; k < request->counts[i]; k++) {
            struct extent *extent = remove_extent(broker, lease, i);

            extent->state = EXTENT_EARMARKED;
            extent->holder = request;
            broker->earmarked_bytes += extent_bytes(&broker->pool, extent);
            request->extents[slot++] = extent_id(extent);
            request->ready[i]++;
        }
    request->n_ready = slot;
    issue(lease, -(int)request->pages);
    mark_used(broker, lease);
}

int lease_may_take(struct broker *broker, struct broker_lease *lease, const struct broker_peer *holder,
                   uint32_t pages)
{
    if (!lease->peer)
        return BROKER_E_NOT_LEASED;
    if (pages == 0 || holder->lost || holder->instance != lease->peer->instance)
        return BROKER_E_INVALID;
    if (holder->instance->frozen)
        return BROKER_E_FROZEN;
    if (broker->draining)
        return BROKER_E_DRIVER;
    return pages <= in_transit(broker, lease) ? 0 : BROKER_E_NOT_LEASED;
}

/* ---- The end ---- */

static void detach_requests(struct broker *broker, struct broker_lease *lease)
{
    list_for_each_safe (it, &lease->peer->requests) {
        struct broker_request *request = container_of(it, struct broker_request, peer_link);

        if (request->lease != lease)
            continue;
        if (request->state < BROKER_REQUEST_REFUSED)
            queue_refuse(broker, request, BROKER_E_NOT_LEASED);
        request->lease = NULL;
    }
}

static void lease_close(struct broker *broker, struct broker_lease *lease)
{
    take_all_back(broker, lease);
    list_unlink(&lease->link);
    list_unlink(&lease->report_link);
    lease->peer = NULL;
}

void leases_lose(struct broker *broker, struct broker_peer *peer)
{
    list_for_each_safe (it, &peer->leases)
        lease_close(broker, container_of(it, struct broker_lease, link));
}

struct broker_lease *broker_lease_free(struct broker *broker, struct broker_lease *lease)
{
    if (!lease)
        return NULL;
    if (lease->peer) {
        detach_requests(broker, lease);
        lease_close(broker, lease);
        broker_settle(broker, broker->now_ns);
    }
    free(lease);
    return NULL;
}

bool leases_next_report(struct broker *broker, struct broker_action *ret)
{
    struct broker_lease *lease = list_first(&broker->scribbled, struct broker_lease, report_link);

    if (!lease)
        return false;
    list_unlink(&lease->report_link);
    *ret = (struct broker_action){
        .type = BROKER_ACTION_SCRIBBLED,
        .peer = lease->peer,
        .instance = lease->peer->instance,
    };
    return true;
}
