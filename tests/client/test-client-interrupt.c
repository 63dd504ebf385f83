/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A host that wants its call to end: the call does so soon, whatever it waits for and however long it might,
 * and what it had asked for is nobody's, or everybody's again, as after a timeout.
 */

#include "remoteworld.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "conn.h"

#define PAGE (2 * MIB)
#define BLOCK (256 * KIB)
#define EACH 8
#define CALL_NS (50 * NSEC_PER_MSEC)
#define SOON_NS (2 * NSEC_PER_SEC) /* on any machine; else the tests would wait for ever */

/* Says yes on threads that are to be interrupted, once the call has had the time to do what it can. */
static _Thread_local bool interruptible;
static _Thread_local uint64_t began_ns;
static atomic_uint n_asked;
static _Thread_local int (*meanwhile)(void); /* by the host, where it is asked */

static int is_interrupted(void *data)
{
    int (*call)(void) = meanwhile;
    char name[16];

    check(data == &n_asked);
    check_eq(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
    check(strcmp(name, "kvclient") != 0);
    atomic_fetch_add(&n_asked, 1);
    meanwhile = NULL;
    if (call)
        check_ok(call());
    return interruptible && conn_now_ns() >= began_ns + CALL_NS;
}

static void begin(void)
{
    interruptible = true;
    began_ns = conn_now_ns();
}

static void end(void)
{
    interruptible = false;
    check(conn_now_ns() - began_ns < SOON_NS);
}

#define check_interrupted(call)                                                                              \
    do {                                                                                                     \
        begin();                                                                                             \
        check_error(call, KVC_E_INTERRUPTED);                                                                \
        check(strstr(kvc_last_error(), "interrupted"));                                                      \
        end();                                                                                               \
    } while (0)

static struct kvc_options open_options(struct fake *fake)
{
    struct kvc_options options = plain_options(fake);

    options.timeout_ms = -1;
    options.interrupted = is_interrupted;
    options.interrupted_data = &n_asked;
    return options;
}

static struct kvc_client *open_client(struct fake *fake, enum kvc_role role, int max, int own_thread)
{
    struct kvc_options options = open_options(fake);
    struct kvc_client *client;

    options.role = role;
    options.own_thread = own_thread;
    options.max_reserved_pages = max;
    check_ok(kvc_open(&options, &client));
    return client;
}

TEST(opening)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = open_options(fake);
    struct kvc_client *client = NULL;

    fake_lie(fake, FAKE_SILENCE, MESSAGE_HELLO);
    check_interrupted(kvc_open(&options, &client));
    check(!client);
    check_ok(kvc_open(&options, &client));
    kvc_close(client);
    fake_stop(fake);
}

/* A daemon that is stopped has a full backlog some time. */
TEST(connecting)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = open_options(fake);
    struct kvc_client *client = NULL;
    int r;

    options.timeout_ms = 1;
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    do
        r = kvc_open(&options, &client);
    while (r == KVC_E_TIMEOUT && !strstr(kvc_last_error(), "does not accept"));
    check_eq(r, KVC_E_TIMEOUT);
    options.timeout_ms = -1;
    check_interrupted(kvc_open(&options, &client));
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    check_ok(kvc_open(&options, &client));
    kvc_close(client);
    fake_stop(fake);
}

/* What comes later goes back, and then all is as before. */
TEST(mapping)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);

    check_ok(map_range(region, 0, 2));
    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_interrupted(map_range(region, 2, 3));
    check_eq(lent_bytes(fake), 5 * PAGE);
    fake_release(fake);
    dispatch_until(client, lent_bytes(fake) == 2 * PAGE);
    check_ok(map_range(region, 2, 3));
    fake_lie(fake, FAKE_LATE, MESSAGE_RETURN);
    check_interrupted(unmap_range(region, 2, 3));
    check_eq(lent_bytes(fake), 2 * PAGE);
    fake_release(fake);
    check_error(unmap_range(region, 2, 3), KVC_E_NOT_MAPPED);
    kvc_close(client);
    fake_stop(fake);
}

/* What is opened or attached to too late is closed. */
TEST(regions)
{
    const struct kvc_region_options options = {.size = sizeof(options), .page_bytes = PAGE, .pages = PAGES};
    struct fake *fake = fake_with_orders();
    struct kvc_client *engine = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_client *scheduler = open_client(fake, KVC_ROLE_SCHEDULER, 0, 0);
    struct kvc_region *region = NULL;

    fake_lie(fake, FAKE_SILENCE, MESSAGE_REGION_OPEN);
    check_interrupted(kvc_region_open(engine, &options, &region));
    fake_lie(fake, FAKE_LATE, MESSAGE_REGION_ATTACH);
    check_interrupted(kvc_region_attach(scheduler, 3, 7, -1, &region));
    check(!region);
    fake_release(fake);
    dispatch_until(scheduler, fake_count(fake).regions == 0);
    fake_lie(fake, FAKE_LATE, MESSAGE_UNMAP);
    check_interrupted(kvc_region_attach(scheduler, 0, 0, -1, &region));
    check(!region);
    region = attach(scheduler, 0);
    fake_lie(fake, FAKE_LATE, MESSAGE_MAP);
    check_interrupted(map_range(region, 1, 2));
    fake_release(fake);
    kvc_region_close(region);
    kvc_close(scheduler);
    kvc_close(engine);
    fake_stop(fake);
}

/* However much is still to be confirmed. */
TEST(closing)
{
    struct fake *fake = fake_start(NULL);

    for (int own_thread = 0; own_thread < 2; own_thread++) {
        struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, own_thread);

        check_ok(map_range(open_region(client, 1, PAGE, PAGES), 0, 3));
        check_ok(map_range(open_region(client, 1, PAGE, PAGES), 0, 3));
        fake_lie(fake, FAKE_SILENCE, MESSAGE_RETURN);
        begin();
        kvc_close(client);
        end();
        while (lent_bytes(fake) > 0)
            sched_yield();
    }
    fake_stop(fake);
}

/* The client goes on, and the daemon is told of the region all the same. */
TEST(closing_a_region)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);

    check_ok(map_range(region, 0, 3));
    fake_lie(fake, FAKE_SILENCE, MESSAGE_RETURN);
    begin();
    kvc_region_close(region);
    end();
    dispatch_until(client, fake_count(fake).regions == 0);
    kvc_close(client);
    fake_stop(fake);
}

/* The library's thread waits for the daemon to confirm what a notice was given, and who closes the client
 * waits for the thread. */
TEST(closing_while_the_own_thread_waits)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, PAGES, 1);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);

    check_ok(map_range(region, 0, 3));
    check_ok(unmap_range(region, 0, 3));
    check_eq(lent_bytes(fake), 3 * PAGE);
    fake_lie(fake, FAKE_LATE, MESSAGE_RETURN);
    fake_notice(fake, 3 * PAGE, 20000, false);
    while (fake_count(fake).late == 0)
        sched_yield();
    began_ns = conn_now_ns();
    kvc_close(client);
    end();
    fake_stop(fake);
}

struct mapper {
    pthread_t thread;
    struct kvc_region *region;
    uint64_t page;
};

static void *map_one(void *data)
{
    struct mapper *mapper = data;

    check_ok(kvc_region_map(mapper->region, &mapper->page, 1));
    return NULL;
}

/* Whether it receives for others meanwhile or not, those go on. */
TEST(others_go_on)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);

    for (uint64_t page = 0; page < 6; page += 2) {
        struct mapper mapper = {.region = region, .page = page};

        fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
        check_eq(pthread_create(&mapper.thread, NULL, map_one, &mapper), 0);
        while (fake_count(fake).late == 0)
            sched_yield();
        fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
        check_interrupted(map_range(region, page + 1, 1));
        check_eq(fake_count(fake).late, 2);
        fake_release(fake);
        check_eq(pthread_join(mapper.thread, NULL), 0);
        check_error(map_range(region, page, 1), KVC_E_MAPPED);
    }
    dispatch_until(client, lent_bytes(fake) == 3 * PAGE);
    kvc_close(client);
    fake_stop(fake);
}

static struct kvc_region *other_region;
static struct fake *other_fake;

static int map_and_release(void)
{
    int r = map_range(other_region, 8, 2);

    fake_release(other_fake);
    return r;
}

/* The host does what it likes where it is asked, with the same client, too. */
TEST(the_host_uses_the_library)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);

    other_region = region;
    other_fake = fake;
    meanwhile = map_and_release;
    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_ok(map_range(region, 0, 2));
    check(!meanwhile);
    check_eq(lent_bytes(fake), 4 * PAGE);
    kvc_close(client);
    fake_stop(fake);
}

static int fail_in_between(void *data)
{
    error_set(KVC_E_INVALID, "its own");
    check_str(kvc_last_error(), "its own");
    return 0;
}

/* The call's sentence stays, also where it is held; the host sees those of its own calls. */
TEST(errors_of_its_own)
{
    const struct interrupt interrupt = {.is_wanted = fail_in_between};

    error_set(KVC_E_LIMIT, "the call's");
    check_eq(interrupt_ask(&interrupt), 0);
    check_str(kvc_last_error(), "the call's");
    error_hold();
    check_eq(interrupt_ask(&interrupt), 0);
    error_release();
    check_str(kvc_last_error(), "the call's");
}

/* A call that doesn't wait, or not for long, is not held up by the host. */
TEST(short_waits)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);
    uint64_t page = 0;

    nanosleep(&(struct timespec){.tv_nsec = 300 * NSEC_PER_MSEC}, NULL);
    atomic_store(&n_asked, 0);
    began_ns = conn_now_ns();
    check_ok(kvc_region_map(region, &page, 1));
    check(atomic_load(&n_asked) == 0 || conn_now_ns() - began_ns >= 100 * NSEC_PER_MSEC);
    kvc_close(client);
    fake_stop(fake);
}

/* But however short each of them is, a call that goes on is not deaf. */
TEST(many_short_waits)
{
    const struct interrupt interrupt = {.is_wanted = is_interrupted, .data = &n_asked};
    uint64_t due_ns = interrupt_due_ns(&interrupt);

    check(due_ns > conn_now_ns());
    while (conn_now_ns() < due_ns)
        check_eq(interrupt_due_ns(&interrupt), due_ns);
    check_eq(interrupt_due_ns(&interrupt), due_ns);
    check_ok(interrupt_ask(&interrupt));
    due_ns = interrupt_due_ns(&interrupt);
    check(due_ns > conn_now_ns());
    nanosleep(&(struct timespec){.tv_nsec = 300 * NSEC_PER_MSEC}, NULL);
    check(interrupt_due_ns(&interrupt) >= due_ns + 300 * NSEC_PER_MSEC - 100 * NSEC_PER_MSEC);
}

struct taker {
    pthread_t thread;
    struct kvc_blocks *blocks;
};

static void *take_page(void *data)
{
    struct taker *taker = data;
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(taker->blocks, EACH, ids));
    return NULL;
}

static struct kvc_blocks_status status_of(struct kvc_blocks *blocks)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(blocks, &status));
    return status;
}

/* In blocks a call may wait for memory, and for other calls that do. */
TEST(blocks)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK, .max_pages = 2};
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_client *client = open_client(fake, KVC_ROLE_ENGINE, 0, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, PAGES);
    uint32_t ids[2 * EACH];
    struct taker taker;

    check_ok(kvc_blocks_open(&region, 1, &options, &taker.blocks));
    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_interrupted(kvc_blocks_alloc(taker.blocks, EACH, ids));
    check_eq(status_of(taker.blocks).used_blocks, 0);
    check_eq(status_of(taker.blocks).mapped_pages, 0);
    check_eq(status_of(taker.blocks).empty_pages, 2);
    fake_release(fake);
    dispatch_until(client, lent_bytes(fake) == 0);

    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_eq(pthread_create(&taker.thread, NULL, take_page, &taker), 0);
    while (status_of(taker.blocks).empty_pages == 2)
        sched_yield();
    check_interrupted(kvc_blocks_alloc(taker.blocks, 2 * EACH, ids));
    fake_release(fake);
    check_eq(pthread_join(taker.thread, NULL), 0);
    check_eq(status_of(taker.blocks).used_blocks, EACH);
    check_ok(kvc_blocks_alloc(taker.blocks, EACH, ids));
    check_error(kvc_blocks_alloc(taker.blocks, 1, ids), KVC_E_NO_BLOCKS);
    kvc_close(client);
    fake_stop(fake);
}

/* An answer to a question of its own, or to an earlier one. */
TEST(setting_aside)
{
    struct kvc_blocks_options blocks_options = {.size = sizeof(blocks_options), .block_bytes = BLOCK};
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_options options = open_options(fake);
    struct kvc_blocks *blocks;
    struct kvc_client *client;
    struct kvc_region *region;

    options.min_reserved_pages = 1;
    options.max_reserved_pages = 2;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, PAGES);
    check_ok(kvc_blocks_open(&region, 1, &blocks_options, &blocks));
    for (int earlier = 0; earlier < 2; earlier++) {
        uint64_t n = (uint64_t)(earlier + 1) * 2 * EACH;

        fake_lie(fake, FAKE_LATE, MESSAGE_LEASE);
        if (earlier)
            check_ok(kvc_blocks_want(blocks, n, 0, NULL));
        check_interrupted(kvc_blocks_want(blocks, n, -1, NULL));
        check_eq(fake_count(fake).late, 1);
        fake_release(fake);
        check_ok(kvc_blocks_want(blocks, n, -1, NULL));
        check_eq(kvc_blocks_available(blocks), n);
    }
    kvc_close(client);
    fake_stop(fake);
}
