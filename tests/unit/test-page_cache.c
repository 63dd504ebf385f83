/* SPDX-License-Identifier: Apache-2.0 */
#include "page_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

#define PAGE_BYTES 100

static struct page_cache_entry mapped(uint64_t page)
{
    return (struct page_cache_entry){.page = page};
}

static struct page_cache_entry imported(void)
{
    return mapped(PAGE_NONE);
}

TEST(empty)
{
    struct page_cache_bytes bytes = {.max_bytes = UINT64_MAX};
    struct page_cache cache;

    page_cache_init(&cache, &bytes, PAGE_BYTES, 4);
    check(!page_cache_take(&cache));
    check(!page_cache_evict(&cache));
    check(!page_cache_empty(&cache));
    check_eq(page_cache_shortfall(&cache, 3), 3);
    check_eq(page_cache_shortfall(&cache, 9), 4);
}

TEST(what_is_used_first)
{
    struct page_cache_bytes bytes = {.max_bytes = UINT64_MAX};
    struct page_cache_entry a = mapped(1), b = imported(), c = mapped(2), d = imported();
    struct page_cache cache;

    page_cache_init(&cache, &bytes, PAGE_BYTES, 4);
    page_cache_put(&cache, &a);
    page_cache_put(&cache, &b);
    page_cache_put(&cache, &c);
    page_cache_put(&cache, &d);
    check_eq(bytes.bytes, 4 * PAGE_BYTES);
    check(page_cache_take(&cache) == &d);
    check(page_cache_take(&cache) == &b);
    check(page_cache_take(&cache) == &a);
    check(page_cache_take(&cache) == &c);
    check(!page_cache_take(&cache));
    check_eq(bytes.bytes, 0);
}

TEST(what_goes_first)
{
    struct page_cache_bytes bytes = {.max_bytes = UINT64_MAX};
    struct page_cache_entry a = mapped(1), b = imported(), c = mapped(2), d = imported();
    struct page_cache cache;

    page_cache_init(&cache, &bytes, PAGE_BYTES, 1);
    page_cache_put(&cache, &a);
    page_cache_put(&cache, &b);
    page_cache_put(&cache, &c);
    page_cache_put(&cache, &d);
    check(page_cache_evict(&cache) == &b);
    check(page_cache_evict(&cache) == &d);
    check(page_cache_evict(&cache) == &a);
    check(!page_cache_evict(&cache));
    check(page_cache_empty(&cache) == &c);
}

TEST(a_page_used_again_is_young)
{
    struct page_cache_bytes bytes = {.max_bytes = UINT64_MAX};
    struct page_cache_entry a = mapped(1), b = mapped(2);
    struct page_cache cache;

    page_cache_init(&cache, &bytes, PAGE_BYTES, 1);
    page_cache_put(&cache, &a);
    page_cache_put(&cache, &b);
    page_cache_remove(&cache, &a);
    page_cache_put(&cache, &a);
    check(page_cache_evict(&cache) == &b);
}

/* The bound in bytes counts what other caches hold, and this one gives way. */
TEST(bytes_are_shared)
{
    struct page_cache_bytes bytes = {.max_bytes = 350};
    struct page_cache_entry small[2] = {mapped(0), mapped(1)}, large = imported();
    struct page_cache a, b;

    page_cache_init(&a, &bytes, PAGE_BYTES, 9);
    page_cache_init(&b, &bytes, 200, 9);
    page_cache_put(&b, &large);
    page_cache_put(&a, &small[0]);
    check_eq(page_cache_shortfall(&a, 9), 0);
    check(!page_cache_evict(&a));
    page_cache_put(&a, &small[1]);
    check(page_cache_evict(&a) == &small[0]);
    check(!page_cache_evict(&a));
    check(!page_cache_evict(&b));
    page_cache_remove(&b, &large);
    check_eq(page_cache_shortfall(&b, 9), 1);
    check_eq(page_cache_shortfall(&a, 9), 2);
}

TEST(no_room_at_all)
{
    struct page_cache_bytes bytes = {.max_bytes = UINT64_MAX};
    struct page_cache_entry a = mapped(1);
    struct page_cache cache;

    page_cache_init(&cache, &bytes, PAGE_BYTES, 0);
    check_eq(page_cache_shortfall(&cache, 5), 0);
    page_cache_put(&cache, &a);
    check(page_cache_evict(&cache) == &a);
    check_eq(bytes.bytes, 0);
}

/* ---- Against a model that looks at every entry each time ---- */

#define ENTRIES 40
#define CACHES 3

struct model {
    struct page_cache caches[CACHES];
    struct page_cache_bytes bytes;
    struct {
        struct page_cache_entry entry;
        int cache; /* -1: none */
        uint64_t since;
    } all[ENTRIES];
    uint64_t now;
};

static uint64_t count(const struct model *m, int cache)
{
    uint64_t n = 0;

    for (int i = 0; i < ENTRIES; i++)
        n += m->all[i].cache == cache;
    return n;
}

static uint64_t all_bytes(const struct model *m)
{
    uint64_t sum = 0;

    for (int i = 0; i < CACHES; i++)
        sum += count(m, i) * m->caches[i].page_bytes;
    return sum;
}

/* The index of the entry that is `oldest` (or youngest) among those of a kind; -1: none. */
static int find(const struct model *m, int cache, bool is_mapped, bool oldest)
{
    int best = -1;

    for (int i = 0; i < ENTRIES; i++) {
        if (m->all[i].cache != cache || (m->all[i].entry.page != PAGE_NONE) != is_mapped)
            continue;
        if (best < 0 || (m->all[i].since < m->all[best].since) == oldest)
            best = i;
    }
    return best;
}

static int first_of(int a, int b)
{
    return a >= 0 ? a : b;
}

static void expect(struct model *m, int index, struct page_cache_entry *got)
{
    if (index < 0) {
        check(!got);
        return;
    }
    check(got == &m->all[index].entry);
    m->all[index].cache = -1;
}

static void step(struct model *m, uint64_t *random)
{
    int i = (int)(test_random(random) % ENTRIES), c = (int)(test_random(random) % CACHES);
    struct page_cache *cache = &m->caches[c];
    int to_go = first_of(find(m, c, false, true), find(m, c, true, true));

    switch (test_random(random) % 6) {
    case 0:
    case 1:
        if (m->all[i].cache < 0) {
            m->all[i].cache = c;
            m->all[i].since = ++m->now;
            m->all[i].entry.page = test_random(random) % 2 ? (uint64_t)i : PAGE_NONE;
            page_cache_put(cache, &m->all[i].entry);
        }
        break;
    case 2:
        if (m->all[i].cache >= 0) {
            page_cache_remove(&m->caches[m->all[i].cache], &m->all[i].entry);
            m->all[i].cache = -1;
        }
        break;
    case 3:
        expect(m, first_of(find(m, c, false, false), find(m, c, true, true)), page_cache_take(cache));
        break;
    case 4:
        if (count(m, c) <= cache->max_pages && all_bytes(m) <= m->bytes.max_bytes)
            to_go = -1;
        expect(m, to_go, page_cache_evict(cache));
        break;
    default:
        expect(m, to_go, page_cache_empty(cache));
    }
    check_eq(m->bytes.bytes, all_bytes(m));
    check_eq(cache->n_pages, count(m, c));
}

TEST(random_steps)
{
    uint64_t random = test_seed();

    for (int round = 0; round < 50; round++) {
        struct model m = {.bytes = {.max_bytes = 500 + test_random(&random) % 2000}};

        for (int i = 0; i < CACHES; i++)
            page_cache_init(&m.caches[i], &m.bytes, 50 + 50 * (uint64_t)i, test_random(&random) % 10);
        for (int i = 0; i < ENTRIES; i++)
            m.all[i].cache = -1;
        for (int i = 0; i < 2000; i++)
            step(&m, &random);
    }
}
