/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How a process comes to its devices, for both libraries: told by the program, else by the environment, else
 * by default.
 *
 * A forked child has the parent's memory, and would give away the parent's references if it acted on it. So a
 * word in a page that the kernel wipes on fork tells the two apart, at the cost of one load.
 */

#include "place.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"

void place_set(struct place *place, const char *folder, const char *sizes)
{
    snprintf(place->folder, sizeof(place->folder), "%s", folder ?: "");
    snprintf(place->sizes, sizeof(place->sizes), "%s", sizes ?: "");
}

static bool same_folder(const struct registry *registry, const char *folder)
{
    char path[PATH_MAX];

    return realpath(folder, path) && strcmp(path, registry_path(registry)) == 0;
}

static bool same_sizes(const struct registry *registry, const char *sizes)
{
    uint64_t totals[EMU_MAX_DEVICES];
    char error[EMU_ERROR_MAX];
    unsigned n;

    if (config_parse_sizes(sizes, totals, &n, error) < 0 || n != registry_n_devices(registry))
        return false;
    for (unsigned i = 0; i < n; i++)
        if (totals[i] != registry_total(registry, i))
            return false;
    return true;
}

bool place_matches(const struct registry *registry, const char *folder, const char *sizes)
{
    return (!folder || same_folder(registry, folder)) && (!sizes || same_sizes(registry, sizes));
}

static int make_mark(struct place *place)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, size, MADV_WIPEONFORK) < 0) {
        int r = -errno;

        munmap(page, size);
        return r;
    }
    *(uint32_t *)page = 1;
    __atomic_store_n(&place->here, page, __ATOMIC_RELEASE);
    return 0;
}

static void find_folder(const struct place *place, char *path, size_t size)
{
    const char *set = getenv("KVCACHED_EMULATE_DIR");

    if (place->folder[0] || (set && *set))
        snprintf(path, size, "%s", place->folder[0] ? place->folder : set);
    else
        snprintf(path, size, "/dev/shm/kvcached-emu-%u", (unsigned)geteuid());
}

static int find_sizes(const struct place *place, uint64_t totals[static EMU_MAX_DEVICES], unsigned *n,
                      char *error)
{
    const char *sizes = place->sizes[0] ? place->sizes : getenv("KVCACHED_EMULATE");

    *n = 0;
    return sizes && *sizes ? config_parse_sizes(sizes, totals, n, error) : 0;
}

int place_join(struct place *place, struct registry **ret_registry, char error[static EMU_ERROR_MAX])
{
    struct registry *registry;
    uint64_t totals[EMU_MAX_DEVICES];
    char path[PATH_MAX];
    unsigned n;
    int r;

    r = find_sizes(place, totals, &n, error);
    if (r < 0)
        return r;
    find_folder(place, path, sizeof(path));
    r = registry_join(path, totals, n, CONFIG_DEFAULT_BYTES, &registry, error);
    if (r < 0)
        return r;
    if (!place->here)
        r = make_mark(place);
    if (r < 0) {
        snprintf(error, EMU_ERROR_MAX, "Emulated devices: %s", strerror(-r));
        registry_leave(registry);
        return r;
    }
    *ret_registry = registry;
    return 0;
}

bool place_has_joined(const struct place *place)
{
    return __atomic_load_n(&place->here, __ATOMIC_ACQUIRE) != NULL;
}

bool place_is_forked(const struct place *place)
{
    const uint32_t *word = __atomic_load_n(&place->here, __ATOMIC_ACQUIRE);

    return word && !*word;
}
