/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The audit recomputes from the extents, one by one, everything that the rest keeps as running sums, and says
 * which of its promises doesn't hold. It trusts no counter, and shares no code with what it checks. It is
 * slow, and for tests; which ask after every event, so all slots are looked at only once.
 */

#include <stdlib.h>

#include "base/arith.h"
#include "base/cleanup.h"

#include "broker-internal.h"

#define expect(condition, sentence)                                                                          \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            return sentence;                                                                                 \
    } while (0)

struct sums {
    uint64_t bytes[_LEDGER_N];
    uint64_t charged_bytes, earmarked_bytes, shelved_bytes, warm_bytes, unconfirmed_bytes;
    uint32_t n_extents, n_descriptors, n_creating, n_exporting_ahead, n_doomed, n_doomed_descriptors;
    uint32_t n_active, n_leased, n_leasing, n_needs, n_courtesies, n_undecided;
    uint64_t unpromised_bytes; /* pending that no lease held before */
};

/* Extents that are neither at rest nor in anybody's hands. */
struct moving {
    const struct extent **extents;
    uint32_t n;
};

static enum ledger_state ledger_state_of(const struct extent *extent)
{
    switch ((enum extent_state)extent->state) {
    case EXTENT_CREATING:
        return LEDGER_CREATING;
    case EXTENT_SHELVED:
    case EXTENT_EXPORTING:
    case EXTENT_EARMARKED:
        return LEDGER_POOL;
    case EXTENT_LEASED:
        return LEDGER_LEASED;
    case EXTENT_GRANTED:
        return LEDGER_GRANTED;
    case EXTENT_LIMBO:
        return LEDGER_LIMBO;
    case EXTENT_DOOMED:
    case EXTENT_UNCONFIRMED:
        return LEDGER_DESTROYING;
    case EXTENT_UNUSED:
    case EXTENT_LOOSE:
        break;
    }
    return _LEDGER_N;
}

static void add_extent(struct sums *sums, const struct broker *broker, const struct extent *extent)
{
    uint64_t bytes = extent->charge.bytes;

    sums->n_extents++;
    sums->n_descriptors += extent->descriptor;
    sums->bytes[ledger_state_of(extent)] += bytes;
    sums->charged_bytes += extent->charge.account ? bytes : 0;
    sums->earmarked_bytes += extent->state == EXTENT_EARMARKED ? bytes : 0;
    sums->shelved_bytes += extent->state == EXTENT_SHELVED ? bytes : 0;
    sums->warm_bytes += extent->state == EXTENT_SHELVED && extent->descriptor ? bytes : 0;
    sums->unconfirmed_bytes += extent->state == EXTENT_UNCONFIRMED ? bytes : 0;
    sums->n_leased += extent->state == EXTENT_LEASED;
    sums->n_creating += extent->state == EXTENT_CREATING;
    sums->n_doomed += extent->state == EXTENT_DOOMED;
    sums->n_doomed_descriptors += extent->state == EXTENT_DOOMED && extent->descriptor;
    sums->n_exporting_ahead += extent->state == EXTENT_EXPORTING && !extent->holder;
}

static const char *check_colour(const struct broker *broker, const struct extent *extent)
{
    const struct broker_request *request = extent->holder;
    const struct broker_peer *peer = extent->holder;
    const struct broker_domain *domain = extent->holder;
    const struct broker_lease *lease = extent->holder;

    switch ((enum extent_state)extent->state) {
    case EXTENT_EARMARKED:
        expect(request->n_ready <= request->n_extents, "a request has more extents than it wanted");
        expect(extent->shelf == &broker->pool.clean || extent->shelf == &request_domain(request)->shelf,
               "an extent is earmarked across trust domains");
        expect(extent->descriptor, "a cold extent is earmarked");
        break;
    case EXTENT_LEASED:
        expect(lease->peer && !lease->peer->lost && !lease->frozen, "an extent is leased to nobody");
        expect(extent->shelf == &broker->pool.clean || extent->shelf == &lease->peer->instance->domain->shelf,
               "an extent is leased across trust domains");
        expect(extent->descriptor, "a cold extent is leased");
        break;
    case EXTENT_GRANTED:
    case EXTENT_LIMBO:
        expect(extent->shelf == &peer->instance->domain->shelf, "an extent is held across trust domains");
        expect(extent->handed, "a granted extent counts as never handed over");
        expect(peer->lost == (extent->state == EXTENT_LIMBO), "an extent is not where its peer is");
        break;
    case EXTENT_EXPORTING:
        expect(extent->shelf == &broker->pool.clean || !domain || extent->shelf == &domain->shelf,
               "an extent is exported for another trust domain");
        break;
    case EXTENT_SHELVED:
        expect(extent->shelf != &broker->pool.clean || !extent->handed, "a used extent counts as clean");
        break;
    default:
        break;
    }
    return NULL;
}

static const char *check_extent(const struct broker *broker, const struct extent *extent)
{
    const struct ledger_account *account = NULL;
    const struct broker_peer *peer = extent->holder;
    const struct broker_lease *lease = extent->holder;

    expect(extent->state != EXTENT_LOOSE, "an extent is nowhere");
    if (extent->state == EXTENT_UNCONFIRMED)
        expect(extent->charge.bytes && extent->charge.bytes <= extent_bytes(&broker->pool, extent),
               "a charge is more than its extent, or nothing");
    else
        expect(extent->charge.bytes == extent_bytes(&broker->pool, extent),
               "a charge is not what its extent is");
    expect(extent->charge.state == ledger_state_of(extent), "a charge is not in the state of its extent");
    if (extent->state == EXTENT_GRANTED || extent->state == EXTENT_LIMBO)
        account = &peer->instance->account;
    if (extent->state == EXTENT_LEASED)
        account = &lease->peer->instance->account;
    expect(extent->charge.account == account || ledger_state_of(extent) == LEDGER_DESTROYING,
           "an extent is charged to somebody who doesn't hold it");
    return check_colour(broker, extent);
}

static bool is_prepared(const struct broker *broker, const struct broker_request *request)
{
    list_for_each (it, &broker->preparing)
        if (container_of(it, struct broker_request, link) == request)
            return true;
    return false;
}

static const char *check_request(const struct broker *broker, const struct broker_request *request,
                                 struct sums *sums)
{
    uint32_t n = 0, slot = 0;

    if (request->state == BROKER_REQUEST_REFUSED || request->state == BROKER_REQUEST_UNDECIDED) {
        expect(request->charge.bytes == 0, "a request that is not admitted is charged");
        sums->n_undecided += request->state == BROKER_REQUEST_UNDECIDED && request->error == BROKER_E_BUDGET;
        return NULL;
    }
    expect(request->drawn_bytes <= request->bytes && (request->drawn_bytes == 0 || !request->courtesy),
           "a request has got more of reservations than it may");
    if (request->reserves) {
        sums->unpromised_bytes += request->charge.bytes;
        expect((request->state == BROKER_REQUEST_PREPARING) == is_prepared(broker, request),
               "a reservation is ready without a look, or waits for nothing");
        return NULL;
    }
    sums->n_leasing += request->lease ? request->n_extents : 0;
    sums->n_courtesies += request->courtesy;
    sums->n_needs += request->state != BROKER_REQUEST_READY && !request->courtesy;
    sums->unpromised_bytes += request->promised ? 0 : request->bytes;
    expect(request->charge.bytes == request->bytes &&
               request->charge.account == &request->peer->instance->account &&
               request->charge.state == LEDGER_PENDING,
           "a request that waits is not charged what it asked for");
    sums->bytes[LEDGER_PENDING] += request->bytes;
    sums->charged_bytes += request->bytes;
    sums->n_active += request->state == BROKER_REQUEST_PARKED ? 0 : request->n_extents;
    for (unsigned i = broker->config.n_classes; i-- > 0; slot += request->counts[i]) {
        n += request->ready[i];
        for (uint32_t k = 0; k < request->ready[i]; k++) {
            const struct extent *extent = pool_extent_find(&broker->pool, request->extents[slot + k]);

            expect(extent && extent->state == EXTENT_EARMARKED && extent->holder == request &&
                       extent->class_index == i,
                   "an earmarked extent is not its request's");
        }
    }
    expect(n == request->n_ready, "a request miscounts its extents");
    expect((request->state == BROKER_REQUEST_READY) == (n == request->n_extents), "a complete request waits");
    return NULL;
}

static const char *check_domain(const struct broker *broker, const struct broker_domain *domain,
                                const struct moving *moving)
{
    uint32_t incoming[BROKER_CLASSES_MAX] = {}, exporting[BROKER_CLASSES_MAX] = {};

    for (uint32_t k = 0; k < moving->n; k++) {
        const struct extent *extent = moving->extents[k];

        if ((extent->state != EXTENT_CREATING && extent->state != EXTENT_EXPORTING) ||
            extent->holder != domain)
            continue;
        incoming[extent->class_index]++;
        exporting[extent->class_index] += extent->state == EXTENT_EXPORTING;
    }
    for (unsigned i = 0; i < broker->config.n_classes; i++) {
        uint32_t missing = 0, parked = 0;

        list_for_each (it, &domain->queue)
            missing += request_missing(container_of(it, struct broker_request, link), i);
        list_for_each (it, &domain->parked)
            parked += request_missing(container_of(it, struct broker_request, link), i);
        expect(domain->missing[i] == missing, "a domain miscounts what it misses");
        expect(domain->wanted[i] == missing + parked, "a domain miscounts what it wants");
        expect(domain->exporting[i] == exporting[i], "a domain miscounts what is exported for it");
        expect(domain->incoming[i] == incoming[i], "a domain miscounts what is on its way");
    }
    return NULL;
}

static const char *check_lease(const struct broker *broker, const struct broker_lease *lease,
                               uint64_t *ret_bytes, uint32_t *ret_extents)
{
    expect(lease->issued == 0 || !lease->frozen, "a frozen lease has something issued");
    expect(list_is_empty(&lease->issued_link) == (lease->issued == 0) &&
               list_is_empty(&lease->instance_link) == (lease->issued == 0),
           "a lease is listed with nothing issued, or not with something");
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        uint64_t n = 0;

        list_for_each (it, &lease->extents[i]) {
            const struct extent *extent = container_of(it, struct extent, link);

            expect(extent->state == EXTENT_LEASED && extent->holder == lease && extent->class_index == i,
                   "a lease lists an extent of another");
            *ret_bytes += extent_bytes(&broker->pool, extent);
            n++;
        }
        expect(n == (uint64_t)lease->issued * lease->page_counts[i], "a lease doesn't hold whole pages");
        *ret_extents += n;
    }
    return NULL;
}

static const char *check_leases(const struct broker *broker, const struct broker_peer *peer, uint64_t *bytes,
                                uint32_t *n_set_aside)
{
    uint32_t n_issued = 0;

    list_for_each (it, &peer->leases) {
        const struct broker_lease *lease = container_of(it, struct broker_lease, link);
        const char *failure;

        n_issued += lease->issued;
        expect(lease->peer == peer, "a peer lists a lease of another");
        failure = check_lease(broker, lease, &bytes[LEDGER_LEASED], n_set_aside);
        if (failure)
            return failure;
    }
    expect(n_issued == peer->n_issued, "a peer miscounts what is issued to it");
    expect(!peer->lost || list_is_empty(&peer->leases), "a lost peer has leases");
    expect(!peer->lost || (!peer->noticed && list_is_empty(&peer->notice_link)), "a lost peer is asked");
    return NULL;
}

static const char *check_peer(const struct broker *broker, const struct broker_peer *peer, uint64_t *bytes,
                              uint32_t *n_set_aside)
{
    uint64_t held = 0;
    uint32_t n = 0;

    list_for_each (it, &peer->extents) {
        const struct extent *extent = container_of(it, struct extent, link);

        expect(extent->holder == peer, "a peer lists an extent of another");
        held += extent_bytes(&broker->pool, extent);
        bytes[extent->charge.state] += extent_bytes(&broker->pool, extent);
        n++;
    }
    expect(held == peer->held_bytes && n == peer->n_extents, "a peer miscounts what it holds");
    return check_leases(broker, peer, bytes, n_set_aside);
}

static const char *check_reservations(const struct broker *broker, const struct broker_instance *instance,
                                      uint64_t *ret_held)
{
    uint64_t bytes = 0;

    list_for_each (it, &instance->reservations) {
        const struct reservation *reservation = container_of(it, struct reservation, link);
        const struct broker_request *request = &reservation->request;

        expect(request->reserves && request->peer && !request->peer->lost &&
                   request->peer->instance == instance,
               "an instance lists a reservation of nobody, or of another");
        expect(request->charge.bytes <= request->bytes && request->charge.state == LEDGER_RESERVED &&
                   request->charge.account == &instance->account,
               "a reservation is not charged what it has left");
        expect(!reservation->expectation == !request->foreign_bytes, "a reservation expects what it may not");
        expect(!reservation->expectation ||
                   (!reservation->expectation->ended && reservation->expectation->held == request->granted),
               "what is expected is not held as its reservation is");
        bytes += request->charge.bytes;
        *ret_held += request->state == BROKER_REQUEST_ANSWERED ? request->charge.bytes : 0;
    }
    expect(bytes == instance->reserved_bytes, "an instance miscounts what is reserved for it");
    return NULL;
}

static const char *check_expectations(const struct broker *broker)
{
    uint64_t bytes = 0;
    bool waits = false;

    list_for_each (it, &broker->expectations) {
        const struct expectation *expectation = container_of(it, struct expectation, link);

        expect(expectation->bytes <= expectation->foreign_bytes, "more is expected than was asked for");
        expect(expectation->held || expectation->bytes == expectation->foreign_bytes,
               "something is laid to a reservation that is not held");
        expect(!expectation->ended || expectation->look > broker->looked, "what has ended is still expected");
        bytes += expectation->bytes;
        waits |= !expectation->held;
    }
    expect(bytes == broker->expected_bytes, "the broker miscounts what is expected of others");
    expect(bytes == 0 || u64_add_ceil(broker->budget.bytes, bytes) <= u64_max(broker_ceiling(broker), bytes),
           "the budget has in it what is expected of others");
    expect(!waits || u64_add_ceil(broker->ledger.charged_bytes, bytes) <= broker_ceiling(broker),
           "something is expected that nobody has room for");
    return NULL;
}

static const char *check_instance(const struct broker *broker, const struct broker_instance *instance,
                                  const struct moving *moving)
{
    uint64_t bytes[_LEDGER_N] = {}, unpromised_bytes = 0;
    uint32_t n_undecided = 0, n_set_aside = 0;
    const char *failure;

    list_for_each (it, &instance->peers) {
        failure = check_peer(broker, container_of(it, struct broker_peer, link), bytes, &n_set_aside);
        if (failure)
            return failure;
    }
    list_for_each (it, &broker->arrivals) {
        const struct broker_request *request = container_of(it, struct broker_request, arrival_link);

        if (request->peer->instance != instance)
            continue;
        bytes[request->charge.state] += request->charge.bytes;
        unpromised_bytes += request->promised ? 0 : request->charge.bytes;
        n_undecided += request->state == BROKER_REQUEST_UNDECIDED && request->error == BROKER_E_LIMIT;
        n_set_aside += request->lease && request->charge.bytes ? request->n_extents : 0;
    }
    failure = check_reservations(broker, instance, &bytes[LEDGER_RESERVED]);
    if (failure)
        return failure;
    expect(n_set_aside == instance->n_set_aside, "an instance miscounts what is set aside for it");
    expect(n_undecided == instance->n_undecided, "an instance miscounts what its limit doesn't hold");
    expect(!instance->missed ||
               broker_used(instance) > policy_limit(instance->has_limit, instance->limit_of, NULL),
           "an instance within its limit has missed it");
    for (uint32_t i = 0; i < moving->n; i++) {
        const struct extent *extent = moving->extents[i];

        if (ledger_state_of(extent) == LEDGER_DESTROYING && extent->charge.account == &instance->account)
            bytes[LEDGER_DESTROYING] += extent->charge.bytes;
    }
    for (unsigned state = 0; state < _LEDGER_N; state++)
        expect(bytes[state] == instance->account.bytes[state], "an account is not the sum of its charges");
    expect(unpromised_bytes == 0 ||
               broker_used(instance) <= policy_limit(instance->has_limit, instance->limit_of, NULL),
           "more was promised than the limit holds");
    return NULL;
}

static const char *check_sums(const struct broker *broker, const struct sums *sums)
{
    for (unsigned state = 0; state < _LEDGER_N; state++)
        expect(state == LEDGER_RESERVED || sums->bytes[state] == broker->ledger.bytes[state],
               "the ledger is not the sum of all extents");
    expect(sums->charged_bytes + broker->ledger.bytes[LEDGER_RESERVED] == broker->ledger.charged_bytes,
           "what is charged is not the sum of the accounts");
    expect(sums->unpromised_bytes == 0 || broker->ledger.charged_bytes <= broker->budget.bytes,
           "more was promised than the budget holds");
    expect(sums->n_extents == broker->pool.n_extents, "the pool miscounts its extents");
    expect(sums->n_descriptors == broker->pool.n_descriptors, "the pool miscounts its descriptors");
    expect(sums->n_descriptors <= broker->config.warm_max + broker->config.lease_max,
           "too many descriptors are kept");
    expect(sums->n_leased == broker->n_leased && sums->n_leasing == broker->n_leasing,
           "the broker miscounts what is leased");
    expect(sums->n_leased + sums->n_leasing <= broker->config.lease_max, "leases keep too many descriptors");
    expect(sums->n_needs == broker->n_needs && sums->n_courtesies == broker->n_courtesies &&
               sums->n_undecided == broker->n_undecided,
           "the broker miscounts who waits");
    expect(sums->n_courtesies == 0 || sums->n_needs == 0, "a need waits beside a courtesy");
    expect(sums->shelved_bytes == broker->pool.shelved_bytes, "the pool miscounts what lies on its shelves");
    expect(sums->warm_bytes == broker->pool.warm_bytes, "the pool miscounts what is warm");
    expect(sums->earmarked_bytes == broker->earmarked_bytes, "the broker miscounts what is earmarked");
    expect(sums->unconfirmed_bytes == broker->unconfirmed_bytes,
           "the broker miscounts what is not confirmed");
    expect(broker->stuck_bytes <= broker->unconfirmed_bytes, "more is stuck than unconfirmed");
    expect(sums->n_creating == broker->n_creating, "the broker miscounts creates");
    expect(sums->n_creating <= broker->config.creating_max, "too many creates are under way");
    expect(sums->n_exporting_ahead == broker->n_exporting_ahead, "the broker miscounts exports");
    expect(sums->n_doomed == broker->n_doomed && sums->n_doomed_descriptors == broker->n_doomed_descriptors,
           "the broker miscounts destroys");
    expect(sums->n_active == broker->n_active, "the broker miscounts what its requests want");
    return NULL;
}

static const char *check_members(const struct broker *broker, const struct moving *moving)
{
    uint64_t used = 0, reserved = 0, n_set_aside = 0;
    const char *failure;

    list_for_each (it, &broker->domains) {
        failure = check_domain(broker, container_of(it, struct broker_domain, link), moving);
        if (failure)
            return failure;
    }
    list_for_each (it, &broker->instances) {
        const struct broker_instance *instance = container_of(it, struct broker_instance, link);

        failure = check_instance(broker, instance, moving);
        if (failure)
            return failure;
        used += broker_used(instance);
        reserved += instance->reserved_bytes;
        n_set_aside += instance->n_set_aside;
    }
    list_for_each (it, &broker->domains)
        n_set_aside -= container_of(it, struct broker_domain, link)->n_set_aside;
    expect(n_set_aside == 0, "the domains miscount what is set aside for them");
    expect(used == broker->ledger.charged_bytes, "bytes are charged to nobody who is listed");
    expect(reserved == broker->ledger.bytes[LEDGER_RESERVED],
           "something is reserved for nobody who is listed");
    return check_expectations(broker);
}

static bool is_moving(const struct extent *extent)
{
    return extent->state == EXTENT_CREATING || extent->state == EXTENT_EXPORTING ||
           ledger_state_of(extent) == LEDGER_DESTROYING;
}

static const char *check_extents(const struct broker *broker, struct sums *sums, struct moving *moving)
{
    uint32_t n_slots = pool_n_slots(&broker->pool);
    const char *failure;

    for (uint32_t i = 0; i < n_slots; i++) {
        const struct extent *extent = pool_slot(&broker->pool, i);

        if (extent->state == EXTENT_UNUSED)
            continue;
        failure = check_extent(broker, extent);
        if (failure)
            return failure;
        add_extent(sums, broker, extent);
        if (is_moving(extent))
            moving->extents[moving->n++] = extent;
    }
    return NULL;
}

const char *broker_check(const struct broker *broker)
{
    _cleanup_free_ const struct extent **extents = calloc(pool_n_slots(&broker->pool) + 1, sizeof(*extents));
    struct moving moving = {.extents = extents};
    struct sums sums = {};
    const char *failure;

    expect(extents, "there is no memory to check with");
    failure = check_extents(broker, &sums, &moving);
    if (failure)
        return failure;
    list_for_each (it, &broker->arrivals) {
        failure = check_request(broker, container_of(it, struct broker_request, arrival_link), &sums);
        if (failure)
            return failure;
    }
    failure = check_sums(broker, &sums);
    return failure ? failure : check_members(broker, &moving);
}
