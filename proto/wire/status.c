/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Status pages: the memory behind one, and both sides of its sequence lock.
 *
 * The writer's promise is the seals: nobody else can write, and the size never changes. The reader insists on
 * them before it maps anything: reading beyond the end of a file that was shortened is SIGBUS, and would kill
 * the engine. A page is written with every grant, so the orders are no stronger than they must be: each value
 * is released behind the odd sequence and acquired before the second look at it.
 */

#include "wire/status.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>

#include "wire/memfile.h"

#define SEALS_REQUIRED (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

/* More tries than a live writer can spoil: it writes seven words. */
#define READ_TRIES 1000

static_assert(sizeof(struct status_page) <= STATUS_PAGE_SIZE, "the page holds the struct");
static_assert(ATOMIC_LONG_LOCK_FREE == 2, "values in shared memory need no lock");

int status_page_new(struct status_page **ret_page, int *ret_fd)
{
    struct status_page *page;
    void *memory;
    int r;

    r = memfile_new("kvcached-status", STATUS_PAGE_SIZE, F_SEAL_FUTURE_WRITE, &memory, ret_fd);
    if (r < 0)
        return r;
    page = memory;
    page->magic = STATUS_MAGIC;
    page->size = sizeof(*page);
    *ret_page = page;
    return 0;
}

struct status_page *status_page_free(struct status_page *page)
{
    if (page)
        munmap(page, STATUS_PAGE_SIZE);
    return NULL;
}

static void put(_Atomic uint64_t *at, uint64_t value)
{
    atomic_store_explicit(at, value, memory_order_release);
}

void status_page_write(struct status_page *page, const struct status_values *values)
{
    uint32_t before = atomic_load_explicit(&page->sequence, memory_order_relaxed);

    atomic_store_explicit(&page->sequence, before + 1, memory_order_relaxed);
    put(&page->limit_bytes, values->limit_bytes);
    put(&page->used_bytes, values->used_bytes);
    put(&page->budget_bytes, values->budget_bytes);
    put(&page->flags, values->flags);
    put(&page->pressure_bytes, values->pressure_bytes);
    atomic_store_explicit(&page->sequence, before + 2, memory_order_release);
}

int status_page_map(int fd, const struct status_page **ret_page)
{
    const struct status_page *page;
    int r;

    r = memfile_check(fd, STATUS_PAGE_SIZE, SEALS_REQUIRED);
    if (r < 0)
        return r;
    page = mmap(NULL, STATUS_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (page->magic != STATUS_MAGIC || page->size < STATUS_SIZE_FIRST || page->size > STATUS_PAGE_SIZE) {
        status_page_unmap(page);
        return -EBADMSG;
    }
    *ret_page = page;
    return 0;
}

const struct status_page *status_page_unmap(const struct status_page *page)
{
    if (page)
        munmap((void *)page, STATUS_PAGE_SIZE);
    return NULL;
}

static uint64_t get(const _Atomic uint64_t *at)
{
    return atomic_load_explicit(at, memory_order_acquire);
}

bool status_page_read(const struct status_page *page, struct status_values *ret)
{
    uint32_t before;

    for (unsigned i = 0; i < READ_TRIES; i++) {
        before = atomic_load_explicit(&page->sequence, memory_order_acquire);
        ret->limit_bytes = get(&page->limit_bytes);
        ret->used_bytes = get(&page->used_bytes);
        ret->budget_bytes = get(&page->budget_bytes);
        ret->flags = get(&page->flags);
        ret->pressure_bytes = page->size < sizeof(*page) ? 0 : get(&page->pressure_bytes);
        if (before % 2 == 0 && atomic_load_explicit(&page->sequence, memory_order_relaxed) == before)
            return true;
    }
    return false;
}
