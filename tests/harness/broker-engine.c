/* SPDX-License-Identifier: Apache-2.0 */

/* Each page is one small extent, so pages and extents are counted as one. */

#include "broker-engine.h"

#include "test.h"

void engine_join(struct bench *b, struct engine *engine, const char *domain, const char *name)
{
    *engine = (struct engine){.peer = bench_join(b, domain, name)};
    engine->lease = bench_lease(b, engine->peer, 1, 0, &engine->line);
}

void engine_start(struct bench *b, struct engine *engine, const char *name, uint32_t held, uint32_t claimed)
{
    engine_join(b, engine, "d", name);
    broker_peer_listens(b->broker, engine->peer, false, false);
    if (held)
        bench_take(b, engine->peer, held, 0, engine->ids);
    if (claimed) {
        check_eq(bench_lease_ask(b, engine->lease, claimed, false), 0);
        check_eq(lease_claim(&engine->line, claimed), claimed);
    }
}

void engine_return(struct bench *b, struct engine *engine, unsigned first, unsigned n)
{
    check_eq(broker_return(b->broker, engine->peer, engine->ids + first, n, b->now_ns), 0);
    bench_run(b);
}

void check_notice(struct bench *b, unsigned index, const struct engine *engine, uint64_t bytes, bool courtesy)
{
    const struct broker_action *notice = &b->notices[index];

    check(index < b->n_notices);
    check(notice->peer == engine->peer);
    check_eq(notice->bytes, bytes);
    check_eq(notice->courtesy, courtesy);
    check_eq(notice->deadline_ns, courtesy ? 500 * NSEC_PER_MSEC : 2 * NSEC_PER_SEC);
}
