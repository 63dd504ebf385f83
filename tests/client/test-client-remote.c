/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler's regions, each at one worker.
 */

#include <pthread.h>
#include <stdio.h>

#include "remoteworld.h"

static bool driver_is_loaded(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    bool found = false;
    char line[512];

    while (maps && fgets(line, sizeof(line), maps))
        found |= strstr(line, "libcuda") != NULL;
    check(maps && fclose(maps) == 0);
    return found;
}

TEST(a_worker_s_region)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = attach(client, 1);

    check_eq(kvc_region_pages(region), PAGES + 1);
    check_eq(kvc_region_page_bytes(region), 4 * MIB);
    check_eq(kvc_region_segments(region), 1);
    check_eq(kvc_region_segments(NULL), 0);
    check_eq(kvc_region_address(region), 0);
    check_eq(kvc_region_stride(region), 0);
    check_eq(fake_count(fake).unmaps, 1);
    check_ok(map_range(region, 2, 5));
    check_eq(fake_count(fake).mapped, 5);
    check_ok(unmap_range(region, 3, 2));
    check_eq(fake_count(fake).mapped, 3);
    check_ok(kvc_region_map(region, NULL, 0));
    kvc_region_close(region);
    check_eq(fake_count(fake).regions, 0);
    check(!driver_is_loaded());
    kvc_close(client);
    fake_stop(fake);
}

TEST(a_scheduler_has_no_gpu)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region_options options = {.size = sizeof(options), .page_bytes = 2 * MIB, .pages = 1};
    struct kvc_device device = {.size = sizeof(device)};
    struct kvc_region *region = NULL;

    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "no GPU"));
    check(!region && !kvc_driver_path(client));
    check_ok(kvc_device(client, &device));
    check_eq(device.ordinal, -1);
    check_ok(kvc_trim(client));
    check_ok(kvc_dispatch(client));
    kvc_close(client);
    fake_stop(fake);
}

TEST(what_cannot_be_asked)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0), *engine = open_plain(fake);
    struct kvc_region *region = attach(client, 0), *none = NULL;
    uint64_t maps = fake_count(fake).maps;

    check_error(kvc_region_attach(client, 0, 0, 0, NULL), KVC_E_INVALID);
    check_error(kvc_region_attach(NULL, 0, 0, 0, &none), KVC_E_INVALID);
    check_error(kvc_region_attach(engine, 0, 0, 0, &none), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "KVC_ROLE_SCHEDULER"));
    check_error(map_range(region, PAGES, 1), KVC_E_INVALID);
    check_error(map_range(region, 0, 1025), KVC_E_INVALID);
    check_error(unmap_range(region, PAGES - 1, 2), KVC_E_INVALID);
    check_eq(fake_count(fake).maps, maps);
    check(!none);
    kvc_close(engine);
    kvc_close(client);
    fake_stop(fake);
}

TEST(an_old_daemon_has_no_schedulers)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client = NULL;

    options.role = KVC_ROLE_SCHEDULER;
    check_error(kvc_open(&options, &client), KVC_E_VERSION);
    check(!client);
    fake_stop(fake);
}

/* What is said too late is undone: nobody has the region. */
TEST(attaching_takes_too_long)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;

    fake_lie(fake, FAKE_LATE, MESSAGE_REGION_ATTACH);
    check_error(kvc_region_attach(client, 3, 7, 20, &region), KVC_E_TIMEOUT);
    check(strstr(kvc_last_error(), "region 3 of rank 7") && !region);
    check_eq(fake_count(fake).regions, 1);
    fake_release(fake);
    dispatch_until(client, fake_count(fake).regions == 0);
    kvc_close(client);
    fake_stop(fake);
}

/* The worker is there, but doesn't do anything: then the region is not usable. */
TEST(a_worker_that_does_not_answer_the_first_order)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;

    fake_lie(fake, FAKE_LATE, MESSAGE_UNMAP);
    check_error(kvc_region_attach(client, 0, 0, 20, &region), KVC_E_TIMEOUT);
    fake_lie(fake, FAKE_REFUSE_WORKER, MESSAGE_UNMAP);
    check_error(kvc_region_attach(client, 0, 0, 20, &region), KVC_E_WORKER);
    check(!region);
    check_eq(fake_count(fake).regions, 0);
    fake_release(fake);
    check_ok(kvc_region_attach(client, 0, 0, LONG_MS, &region));
    kvc_close(client);
    fake_stop(fake);
}

struct expectation {
    enum fake_lie lie;
    int error;
    bool only_attach;
};

static const struct expectation expectations[] = {
    {FAKE_GARBAGE, KVC_E_PROTOCOL, false},        {FAKE_BAD_LENGTH, KVC_E_PROTOCOL, false},
    {FAKE_BAD_BODY, KVC_E_PROTOCOL, true},        {FAKE_UNKNOWN_TYPE, KVC_E_PROTOCOL, false},
    {FAKE_WRONG_TYPE, KVC_E_PROTOCOL, false},     {FAKE_WRONG_ID, KVC_E_PROTOCOL, false},
    {FAKE_UNASKED, KVC_E_PROTOCOL, false},        {FAKE_EXTRA_FD, KVC_E_PROTOCOL, false},
    {FAKE_DISCONNECT, KVC_E_DISCONNECTED, false}, {FAKE_LAST_WORD, KVC_E_DISCONNECTED, false},
    {FAKE_REFUSE, KVC_E_RESOURCES, false},        {FAKE_REFUSE_WORKER, KVC_E_WORKER, false},
    {FAKE_NO_EXTENTS, KVC_E_PROTOCOL, true},      {FAKE_TOO_MANY, KVC_E_PROTOCOL, true},
    {FAKE_TOO_FEW, KVC_E_PROTOCOL, true},         {FAKE_SMALL_EXTENTS, KVC_E_PROTOCOL, true},
};

static void lie_at(struct fake *fake, const struct expectation *e, enum message_type at)
{
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;
    int attached, mapped = 0, unmapped = 0;

    fake_lie_after(fake, e->lie, at, at == MESSAGE_UNMAP ? 1 : 0);
    attached = kvc_region_attach(client, 0, 0, LONG_MS, &region);
    check((attached == 0) == (region != NULL));
    if (region) {
        mapped = map_range(region, 0, 2);
        unmapped = mapped == 0 ? unmap_range(region, 0, 1) : 0;
    }
    check_error(at == MESSAGE_REGION_ATTACH ? attached : at == MESSAGE_MAP ? mapped : unmapped, e->error);
    check(strlen(kvc_last_error()) > 10);
    kvc_close(client);
    while (fake_count(fake).peers > 0)
        ;
}

TEST(every_lie)
{
    struct fake *fake = fake_with_orders();

    for (size_t i = 0; i < ARRAY_SIZE(expectations); i++) {
        lie_at(fake, &expectations[i], MESSAGE_REGION_ATTACH);
        if (expectations[i].only_attach)
            continue;
        lie_at(fake, &expectations[i], MESSAGE_MAP);
        lie_at(fake, &expectations[i], MESSAGE_UNMAP);
    }
    fake_stop(fake);
}

static void *wait_for_ever(void *data)
{
    struct kvc_region *region = NULL;

    check_ok(kvc_region_attach(data, 0, 0, -1, &region));
    return NULL;
}

/* One thread receives for all, and has no deadline; another one's still counts. */
TEST(deadlines_of_several_threads)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, TIMEOUT_MS, 0);
    pthread_t thread;

    fake_lie(fake, FAKE_LATE, MESSAGE_REGION_ATTACH);
    check_eq(pthread_create(&thread, NULL, wait_for_ever, client), 0);
    while (fake_count(fake).late == 0)
        ;
    fake_lie(fake, FAKE_SILENCE, MESSAGE_REGION_ATTACH);
    check_error(kvc_region_attach(client, 0, 0, 0, &(struct kvc_region *){NULL}), KVC_E_TIMEOUT);
    fake_release(fake);
    check_eq(pthread_join(thread, NULL), 0);
    kvc_close(client);
    fake_stop(fake);
}
