/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A daemon that lies, at every point of a client's life. Whatever it does, calls come back with an error and
 * a sentence, nothing crashes, and nothing is left behind.
 */

#include "support.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#define PAGE (10 * MIB)

static const enum message_type points[] = {
    MESSAGE_HELLO, MESSAGE_REGION_OPEN, MESSAGE_TAKE, MESSAGE_RETURN, MESSAGE_REGION_CLOSE,
};

struct expectation {
    enum fake_lie lie;
    int error;       /* of the call that was lied to */
    uint32_t points; /* bit per entry of points[]: where the lie makes a difference */
};

#define EVERYWHERE 0x1f
#define HELLO 0x01
#define TAKE 0x04
#define RETURN 0x08

static const struct expectation expectations[] = {
    {FAKE_GARBAGE, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_BAD_LENGTH, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_BAD_BODY, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_BAD_VERSION, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_UNKNOWN_TYPE, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_WRONG_TYPE, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_WRONG_ID, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_UNASKED, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_EXTRA_FD, KVC_E_PROTOCOL, EVERYWHERE},
    {FAKE_MISSING_FD, KVC_E_PROTOCOL, HELLO | TAKE},
    {FAKE_NO_FDS, KVC_E_PROTOCOL, HELLO | TAKE},
    {FAKE_NOT_MEMORY, KVC_E_PROTOCOL, HELLO},
    {FAKE_NOT_MEMORY, KVC_E_DRIVER, TAKE},
    {FAKE_SMALL_EXTENTS, KVC_E_DRIVER, TAKE},
    {FAKE_TOO_MANY, KVC_E_PROTOCOL, TAKE},
    {FAKE_TOO_FEW, KVC_E_PROTOCOL, TAKE},
    {FAKE_NO_EXTENTS, KVC_E_PROTOCOL, TAKE},
    {FAKE_SILENCE, KVC_E_TIMEOUT, EVERYWHERE},
    {FAKE_DISCONNECT, KVC_E_DISCONNECTED, EVERYWHERE},
    {FAKE_LAST_WORD, KVC_E_DISCONNECTED, EVERYWHERE},
    {FAKE_REFUSE, KVC_E_RESOURCES, EVERYWHERE & ~RETURN},
    {FAKE_REFUSE, KVC_E_DISCONNECTED, RETURN},
    {FAKE_REFUSE_WORKER, KVC_E_WORKER, EVERYWHERE & ~RETURN},
    {FAKE_REFUSE_VERSION, KVC_E_VERSION, EVERYWHERE & ~RETURN},
    {FAKE_BAD_WELCOME, KVC_E_PROTOCOL, HELLO},
    {FAKE_BAD_STATUS, KVC_E_PROTOCOL, HELLO},
    {FAKE_CHALLENGE, 0, HELLO},
    {FAKE_CHALLENGE_TWICE, KVC_E_PROTOCOL, HELLO},
};

/* What each step of a life returned; RegionClose is inside a call that cannot fail. */
struct life {
    int open, region, take, give;
};

static struct life live(struct fake *fake, int timeout_ms)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_region_options region_options = {
        .size = sizeof(region_options), .segments = 1, .page_bytes = PAGE, .pages = 8};
    const uint64_t pages[] = {1, 2, 5};
    struct kvc_client *client = NULL;
    struct kvc_region *region = NULL;
    struct life life = {0};

    options.timeout_ms = timeout_ms;
    life.open = kvc_open(&options, &client);
    check((life.open == 0) == (client != NULL));
    if (!client)
        return life;
    life.region = kvc_region_open(client, &region_options, &region);
    check((life.region == 0) == (region != NULL));
    if (region) {
        life.take = kvc_region_map(region, pages, 3);
        life.give = life.take == 0 ? kvc_region_unmap(region, pages, 3) : 0;
        check(life.take == 0 || strlen(kvc_last_error()) > 10);
        check_error(kvc_region_unmap(region, pages, 1), KVC_E_NOT_MAPPED);
        check(life.take != 0 || life.give != KVC_E_NOT_MAPPED);
    }
    kvc_region_close(region);
    kvc_close(client);
    return life;
}

static int at_point(const struct life *life, enum message_type point)
{
    switch (point) {
    case MESSAGE_HELLO:
        return life->open;
    case MESSAGE_REGION_OPEN:
        return life->region;
    case MESSAGE_TAKE:
        return life->take;
    case MESSAGE_RETURN:
        return life->give;
    default:
        return life->open | life->region | life->take | life->give;
    }
}

static void tell(struct fake *fake, const struct expectation *e, enum message_type point)
{
    int wanted = point == MESSAGE_REGION_CLOSE ? 0 : e->error, got;
    struct life life;

    fake_lie(fake, e->lie, point);
    life = live(fake, e->lie == FAKE_SILENCE ? 40 : 20000);
    got = at_point(&life, point);
    if (got != wanted)
        test_fail(__FILE__, __LINE__, "lie %d in answer to %s: \"%s\" (%s) in place of \"%s\"", e->lie,
                  codec_type_name(point), kvc_strerror(got), kvc_last_error(), kvc_strerror(wanted));
    while (fake_count(fake).peers > 0)
        ;
    check_eq(fake_count(fake).extents, 0);
}

TEST_LIMIT(every_lie_at_every_point, 120)
{
    struct fake *fake = fake_start(NULL);

    for (size_t i = 0; i < ARRAY_SIZE(expectations); i++)
        for (size_t j = 0; j < ARRAY_SIZE(points); j++)
            if (expectations[i].points & (1u << j))
                tell(fake, &expectations[i], points[j]);
    check_eq(live(fake, 20000).give, 0);
    fake_stop(fake);
}

/* Packets that are nearly right. Anything may come of it but a crash, a hang, or memory that stays. */
TEST_LIMIT(noise, 120)
{
    struct fake *fake = fake_start(NULL);
    uint64_t random = test_seed();

    check_eq(live(fake, 20000).give, 0);
    for (int i = 0; i < 400; i++) {
        fake_lie(fake, FAKE_NOISE, points[test_random(&random) % ARRAY_SIZE(points)]);
        live(fake, 30);
    }
    while (fake_count(fake).peers > 0)
        ;
    check_eq(fake_count(fake).extents, 0);
    check_eq(live(fake, 20000).give, 0);
    fake_stop(fake);
}

TEST(every_lie_is_told)
{
    bool told[FAKE_LIES] = {
        [FAKE_HONEST] = true,
        [FAKE_LATE] = true,
        [FAKE_NOISE] = true,
        /* in test-client-leases.c */
        [FAKE_OTHER_LEASE] = true,
        [FAKE_FORGET] = true,
        /* in test-client-remote.c */
        [FAKE_WORKER_GONE] = true,
    };

    for (size_t i = 0; i < ARRAY_SIZE(expectations); i++)
        told[expectations[i].lie] = true;
    for (int i = 0; i < FAKE_LIES; i++)
        if (!told[i])
            test_fail(__FILE__, __LINE__, "lie %d is never told", i);
}

struct log {
    unsigned n;
    enum kvc_log_level level;
    char sentence[512];
};

static void note(void *data, enum kvc_log_level level, const char *sentence)
{
    struct log *log = data;

    log->n++;
    log->level = level;
    snprintf(log->sentence, sizeof(log->sentence), "%s", sentence);
}

/* The daemon is gone: mapped memory works on, calls say why they don't, and the host hears of it once. */
TEST(death_is_for_good)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_status status = {.size = sizeof(status)};
    struct log log = {0};
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct pollfd pfd = {.events = POLLIN};

    options.max_reserved_pages = 4;
    options.log = note;
    options.log_data = &log;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 8);
    emulator = emulator_open(client);
    check_ok(map_range(region, 0, 4));
    check_ok(unmap_range(region, 3, 1));
    stamp(emulator, region, PAGE, 0, 1, 4711);
    check_eq(kill(fake_pid(fake), SIGKILL), 0);
    pfd.fd = kvc_get_fd(client);
    for (int i = 0; i < 3; i++) {
        check_eq(poll(&pfd, 1, 10000), 1);
        check_error(kvc_dispatch(client), KVC_E_DISCONNECTED);
        check_eq(kvc_get_fd(client), pfd.fd);
    }
    check_eq(log.n, 1);
    check_eq(log.level, KVC_LOG_WARNING);
    check(strstr(log.sentence, "ended") && !strchr(log.sentence, '\n'));
    check_ok(kvc_status(client, &status));
    check(!status.connected);
    check_stamp(emulator, region, PAGE, 0, 1, 4711);
    check_error(map_range(region, 5, 1), KVC_E_DISCONNECTED);
    check_error(unmap_range(region, 0, 1), KVC_E_DISCONNECTED);
    check_error(unmap_range(region, 0, 1), KVC_E_NOT_MAPPED);
    check_stamp(emulator, region, PAGE, 0, 1, 4711);
    check_error(kvc_trim(client), KVC_E_DISCONNECTED);
    emulator_close(emulator);
    kvc_close(client);
    check_eq(log.n, 1);
    fake_stop(fake);
}

TEST(own_thread_notices_death)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_status status = {.size = sizeof(status), .connected = 1};
    struct kvc_client *client;

    options.own_thread = 1;
    check_ok(kvc_open(&options, &client));
    check_eq(kill(fake_pid(fake), SIGKILL), 0);
    while (status.connected) {
        check_ok(kvc_status(client, &status));
        poll(NULL, 0, 1);
    }
    kvc_close(client);
    fake_stop(fake);
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A daemon that doesn't answer is waited for once, however much there is to give back. */
TEST(closing_comes_to_an_end)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    uint64_t begin;

    options.timeout_ms = 500;
    check_ok(kvc_open(&options, &client));
    for (int i = 0; i < 5; i++)
        check_ok(map_range(open_region(client, 1, PAGE, 8), 0, 2));
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    begin = now_ms();
    kvc_close(client);
    check(now_ms() - begin < 1500);
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    fake_stop(fake);
}

/* ... nor for each message of what a single call gives back. */
TEST(giving_much_back_comes_to_an_end)
{
    struct fake *fake = fake_start(&(struct fake_settings){.total_bytes = 8 * GIB});
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    struct kvc_region *region;
    uint64_t begin;

    options.timeout_ms = 500;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, 2 * MIB, 3000);
    check_ok(map_range(region, 0, 3000));
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    begin = now_ms();
    check_error(unmap_range(region, 0, 3000), KVC_E_TIMEOUT);
    check(now_ms() - begin < 1500);
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

/* The reason that the daemon gives with its last breath reaches whoever calls next. */
TEST(last_word_is_heard)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 8);

    fake_lie(fake, FAKE_LAST_WORD, MESSAGE_TAKE);
    check_error(map_range(region, 0, 1), KVC_E_DISCONNECTED);
    check(strstr(kvc_last_error(), "is stopping"));
    check_error(map_range(region, 0, 1), KVC_E_DISCONNECTED);
    check(strstr(kvc_last_error(), "is stopping"));
    kvc_close(client);
    fake_stop(fake);
}

TEST(wrong_gpu)
{
    struct fake_settings settings = {.uuid = "GPU-00000000-1111-2222-3333-444444444444"};
    struct fake *fake = fake_start(&settings);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client = NULL;

    check_error(kvc_open(&options, &client), KVC_E_DRIVER);
    check(strstr(kvc_last_error(), "GPU-00000000"));
    options.gpu = "3";
    check_error(kvc_open(&options, &client), KVC_E_REFUSED);
    options.gpu = "three";
    check_error(kvc_open(&options, &client), KVC_E_INVALID);
    check(!client);
    fake_stop(fake);
}
