/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Status pages: the memory behind one, and both sides of its sequence lock.
 *
 * The writer's promise is the seals: nobody else can write, and the size never changes. The reader insists on
 * them before it maps anything: reading beyond the end of a file that was shortened is SIGBUS, and would kill
 * the engine. All accesses are sequentially consistent; a page is written a few times a second and read
 * without a lock, so weaker orders would save nothing.
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

void status_page_write(struct status_page *page, const struct status_values *values)
{
    atomic_fetch_add(&page->sequence, 1);
    atomic_store(&page->limit_bytes, values->limit_bytes);
    atomic_store(&page->used_bytes, values->used_bytes);
    atomic_store(&page->budget_bytes, values->budget_bytes);
    atomic_store(&page->flags, values->flags);
    atomic_store(&page->pressure_bytes, values->pressure_bytes);
    atomic_fetch_add(&page->sequence, 1);
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

bool status_page_read(const struct status_page *page, struct status_values *ret)
{
    uint32_t before;

    for (unsigned i = 0; i < READ_TRIES; i++) {
        before = atomic_load(&page->sequence);
        ret->limit_bytes = atomic_load(&page->limit_bytes);
        ret->used_bytes = atomic_load(&page->used_bytes);
        ret->budget_bytes = atomic_load(&page->budget_bytes);
        ret->flags = atomic_load(&page->flags);
        ret->pressure_bytes = page->size < sizeof(*page) ? 0 : atomic_load(&page->pressure_bytes);
        if (before % 2 == 0 && atomic_load(&page->sequence) == before)
            return true;
    }
    return false;
}
