/* SPDX-License-Identifier: Apache-2.0 */
#include "registry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

#define MEMBERS 4
#define EXTENTS 48
#define TOTAL (64 * EMU_GRANULE)

static struct registry *join(void)
{
    const uint64_t total = TOTAL;
    struct registry *registry;
    char error[EMU_ERROR_MAX];

    if (registry_join(test_folder(), &total, 1, 0, &registry, error) != 0)
        test_fail(__FILE__, __LINE__, "%s", error);
    return registry;
}

/* Places in the device's file: extents that live together never overlap. */
TEST(offsets_do_not_overlap)
{
    static const uint64_t sizes[] = {1, 2, 3, 4, 5, 63, 64, 65, 1000, 98304, 262144};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        for (size_t j = 0; j < ARRAY_SIZE(sizes); j++)
            for (uint32_t a = 0; a < 262144; a = a * 3 + 1)
                for (uint32_t b = a + 1; b < 262144; b = b * 5 + 1) {
                    uint64_t one = registry_offset(a, sizes[i] * EMU_GRANULE),
                             two = registry_offset(b, sizes[j] * EMU_GRANULE);

                    check(one + sizes[i] * EMU_GRANULE <= two || two + sizes[j] * EMU_GRANULE <= one);
                    check(one + sizes[i] * EMU_GRANULE < INT64_MAX);
                }
}

struct model_extent {
    bool live;
    uint32_t id;
    uint64_t size;
    uint64_t stamp;
    unsigned refs[MEMBERS];
    int fd;
};

struct model {
    struct registry *members[MEMBERS];
    struct model_extent extents[EXTENTS];
    uint64_t used, stamps;
};

static bool is_referenced(const struct model_extent *extent)
{
    bool any = extent->fd >= 0;

    for (unsigned i = 0; i < MEMBERS; i++)
        any |= extent->refs[i] > 0;
    return any;
}

static void settle(struct model *model, struct model_extent *extent)
{
    if (!extent->live || is_referenced(extent))
        return;
    extent->live = false;
    model->used -= extent->size;
}

static void stamp(struct registry *registry, const struct model_extent *extent, bool fresh)
{
    uint64_t last = registry_offset(extent->id, extent->size) + extent->size - sizeof(uint64_t), value = 1;
    int fd;

    check_eq(registry_memory(registry, 0, &fd), 0);
    check_eq(pread(fd, &value, sizeof(value), (off_t)last), sizeof(value));
    check_eq(value, fresh ? 0 : extent->stamp);
    if (fresh)
        check_eq(pwrite(fd, &extent->stamp, sizeof(value), (off_t)last), sizeof(value));
}

static void do_create(struct model *model, unsigned member, struct model_extent *extent, uint64_t size)
{
    const struct extent_props props = {1, 0};
    uint32_t id;
    int r;

    if (extent->live)
        return;
    r = registry_create(model->members[member], 0, size, &props, &id);
    check_eq(r, model->used + size > TOTAL ? REGISTRY_E_FULL : 0);
    if (r != 0)
        return;
    *extent = (struct model_extent){.live = true, .id = id, .size = size, .stamp = ++model->stamps, .fd = -1};
    extent->refs[member] = 1;
    model->used += size;
    stamp(model->members[member], extent, true);
}

static void do_unref(struct model *model, unsigned member, struct model_extent *extent)
{
    if (!extent->live || extent->refs[member] == 0)
        return;
    extent->refs[member]--;
    registry_unref(model->members[member], 0, extent->id);
    settle(model, extent);
}

static void do_export(struct model *model, unsigned member, struct model_extent *extent)
{
    if (!extent->live || extent->refs[member] == 0 || extent->fd >= 0)
        return;
    check_eq(registry_export(model->members[member], 0, extent->id, &extent->fd), 0);
}

static void do_close(struct model *model, struct model_extent *extent)
{
    if (!extent->live || extent->fd < 0)
        return;
    close(extent->fd);
    extent->fd = -1;
    settle(model, extent);
}

static void do_import(struct model *model, unsigned member, struct model_extent *extent)
{
    struct extent_ref ref;

    if (!extent->live || extent->fd < 0)
        return;
    check_eq(registry_import(model->members[member], extent->fd, &ref), 0);
    check_eq(ref.id, extent->id);
    check_eq(ref.size, extent->size);
    extent->refs[member]++;
    stamp(model->members[member], extent, false);
}

static void do_rejoin(struct model *model, unsigned member)
{
    registry_leave(model->members[member]);
    model->members[member] = join();
    for (unsigned i = 0; i < EXTENTS; i++) {
        model->extents[i].refs[member] = 0;
        settle(model, &model->extents[i]);
    }
}

static void step(struct model *model, uint64_t *seed)
{
    struct model_extent *extent = &model->extents[test_random(seed) % EXTENTS];
    unsigned member = test_random(seed) % MEMBERS;

    switch (test_random(seed) % 16) {
    case 0 ... 5:
        do_create(model, member, extent, (1 + test_random(seed) % 5) * EMU_GRANULE);
        break;
    case 6 ... 8:
        do_unref(model, member, extent);
        break;
    case 9 ... 10:
        do_export(model, member, extent);
        break;
    case 11 ... 12:
        do_close(model, extent);
        break;
    case 13 ... 14:
        do_import(model, member, extent);
        break;
    default:
        if (test_random(seed) % 8 == 0)
            do_rejoin(model, member);
    }
}

/* Members that create, share, forget and leave, against counts in an array. */
TEST(random_against_counts)
{
    uint64_t seed = test_seed();
    struct model model = {0};

    for (unsigned i = 0; i < MEMBERS; i++)
        model.members[i] = join();
    for (unsigned i = 0; i < EXTENTS; i++)
        model.extents[i].fd = -1;
    for (unsigned i = 0; i < 10000; i++) {
        unsigned observer = test_random(&seed) % MEMBERS;

        step(&model, &seed);
        registry_sweep(model.members[observer]);
        check_eq(registry_used(model.members[observer], 0), model.used);
    }
    for (unsigned i = 0; i < EXTENTS; i++)
        if (model.extents[i].live && model.extents[i].fd >= 0)
            close(model.extents[i].fd);
    for (unsigned i = 0; i < MEMBERS; i++)
        registry_leave(model.members[i]);
    check_eq(access(test_folder(), F_OK), -1);
}

TEST(who_holds_what)
{
    const struct extent_props props = {1, 0};
    struct registry_process processes[3];
    struct registry *one, *other;
    struct extent_ref ref;
    uint32_t id;
    int fd;

    one = join();
    other = join();
    check_eq(registry_processes(one, 0, processes, 3), 0);
    check_eq(registry_create(one, 0, 3 * EMU_GRANULE, &props, &id), 0);
    check_eq(registry_export(one, 0, id, &fd), 0);
    check_eq(registry_import(other, fd, &ref), 0);
    close(fd);
    check_eq(registry_processes(other, 0, processes, 3), 1);
    check_eq(processes[0].pid, getpid());
    check_eq(processes[0].bytes, 3 * EMU_GRANULE);
    check_eq(registry_processes(other, 0, NULL, 0), 1);
    registry_leave(one);
    check_eq(registry_processes(other, 0, processes, 3), 0);
    check_eq(registry_used(other, 0), 3 * EMU_GRANULE);
    registry_leave(other);
}

TEST(foreign_descriptors)
{
    struct registry *registry;
    struct extent_ref ref;
    char path[64];
    FILE *file;

    registry = join();
    snprintf(path, sizeof(path), "%s/extent.0.0", test_folder());
    file = fopen(path, "w+e");
    check(file);
    check_eq(registry_import(registry, fileno(file), &ref), REGISTRY_E_FOREIGN);
    fputs("something", file);
    fflush(file);
    check_eq(registry_import(registry, fileno(file), &ref), REGISTRY_E_FOREIGN);
    fclose(file);
    check_eq(registry_import(registry, 12345, &ref), -EBADF);
    registry_leave(registry);
    check_eq(access(test_folder(), F_OK), -1);
}

TEST(a_file_like_an_extents_is_foreign)
{
    const struct extent_props props = {1, 0};
    struct registry *registry = join();
    struct extent_ref ref;
    struct stat st;
    char path[64];
    uint32_t id;
    int fd, file;

    check_eq(registry_create(registry, 0, EMU_GRANULE, &props, &id), 0);
    check_eq(registry_export(registry, 0, id, &fd), 0);
    check_eq(fstat(fd, &st), 0);
    snprintf(path, sizeof(path), "%s/like", test_folder());
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    check(file >= 0);
    unlink(path);
    check_eq(ftruncate(file, st.st_size), 0);
    check_eq(registry_import(registry, file, &ref), REGISTRY_E_FOREIGN);
    check_eq(registry_import(registry, fd, &ref), 0);
    check_eq(ref.id, id);
    registry_unref(registry, 0, id);
    check_eq(ftruncate(file, st.st_size + 1), 0);
    check_eq(registry_import(registry, file, &ref), REGISTRY_E_FOREIGN);
    close(file);
    close(fd);
    registry_unref(registry, 0, id);
    registry_leave(registry);
    check_eq(access(test_folder(), F_OK), -1);
}

/* Who has no descriptor left to clear an extent with does so later; nobody gets it uncleared. */
TEST(full_descriptor_table)
{
    const struct extent_props props = {0};
    struct registry *a = join(), *b = join();
    int fd, lowest = dup(0);
    struct rlimit limit, tight;
    uint32_t id;
    char byte = 7;

    check_eq(close(lowest), 0);
    check_eq(registry_memory(b, 0, &fd), 0);
    check_eq(registry_create(a, 0, EMU_GRANULE, &props, &id), 0);
    check_eq(pwrite(fd, &byte, 1, (off_t)registry_offset(id, EMU_GRANULE)), 1);
    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    tight.rlim_cur = (rlim_t)lowest;
    check_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
    registry_unref(a, 0, id);
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check_eq(registry_create(a, 0, TOTAL, &props, &id), 0);
    registry_unref(a, 0, id);
    check_eq(registry_create(a, 0, EMU_GRANULE, &props, &id), 0);
    check_eq(pread(fd, &byte, 1, (off_t)registry_offset(id, EMU_GRANULE)), 1);
    check_eq(byte, 0);
    registry_unref(a, 0, id);
    registry_leave(b);
    registry_leave(a);
}
