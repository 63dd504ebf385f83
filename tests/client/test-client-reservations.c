/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A controller has memory promised to others, and knows where it stands, whatever the daemon says and however
 * late.
 */

#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONG_MS 20000

static struct kvc_options controller_options(struct fake *fake)
{
    struct kvc_options options = plain_options(fake);

    options.role = KVC_ROLE_CONTROLLER;
    options.timeout_ms = LONG_MS;
    return options;
}

static struct kvc_client *open_controller(struct fake *fake)
{
    struct kvc_options options = controller_options(fake);
    struct kvc_client *client;

    check_ok(kvc_open(&options, &client));
    return client;
}

static struct fake *fake_with_reservations(void)
{
    return fake_start(&(struct fake_settings){.reservations = true, .limit_bytes = 100 * MIB});
}

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

TEST(reserved_and_released)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);

    check_ok(kvc_reserve(client, 40 * MIB, 3 * GIB, 0));
    check_eq(fake_count(fake).reserved, 40 * MIB);
    check_eq(fake_count(fake).foreign, 3 * GIB);
    check_error(kvc_reserve(client, MIB, 0, 0), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "one reservation at a time"));
    check_eq(fake_count(fake).reserves, 1);
    check_ok(kvc_release(client));
    check_eq(fake_count(fake).reserved, 0);
    check_error(kvc_release(client), KVC_E_INVALID);
    check_eq(fake_count(fake).releases, 1);
    check_ok(kvc_reserve(client, 100 * MIB, 0, -1));
    /* Closing is enough. */
    kvc_close(client);
    while (fake_count(fake).reserved)
        ;
    check(!driver_is_loaded());
    fake_stop(fake);
}

TEST(refused)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);

    check_error(kvc_reserve(client, 100 * MIB + 1, 0, 0), KVC_E_LIMIT);
    check_error(kvc_reserve(client, 0, 0, 0), KVC_E_INVALID);
    check_error(kvc_release(client), KVC_E_INVALID);
    fake_lie(fake, FAKE_REFUSE, MESSAGE_RESERVE);
    check_error(kvc_reserve(client, MIB, 0, 0), KVC_E_RESOURCES);
    check_ok(kvc_reserve(client, MIB, 0, 0));
    check_ok(kvc_release(client));
    kvc_close(client);
    fake_stop(fake);
}

TEST(a_controller_has_no_gpu)
{
    struct kvc_region_options options = {.size = sizeof(options), .page_bytes = 2 * MIB, .pages = 1};
    struct fake *fake = fake_with_reservations();
    struct kvc_device device = {.size = sizeof(device)};
    struct kvc_status status = {.size = sizeof(status)};
    struct kvc_client *client = open_controller(fake), *engine = open_plain(fake);
    struct kvc_region *region = NULL;

    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "no GPU"));
    check_error(kvc_region_attach(client, 0, 0, 0, &region), KVC_E_INVALID);
    check(!region && !kvc_driver_path(client));
    check_ok(kvc_device(client, &device));
    check_eq(device.ordinal, -1);
    check_ok(kvc_status(client, &status));
    check_eq(status.limit_bytes, 100 * MIB);
    check_ok(kvc_trim(client));
    check_ok(kvc_dispatch(client));
    check_error(kvc_reserve(engine, MIB, 0, 0), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "KVC_ROLE_CONTROLLER"));
    check_error(kvc_release(engine), KVC_E_INVALID);
    check_error(kvc_reserve(NULL, MIB, 0, 0), KVC_E_INVALID);
    check_error(kvc_release(NULL), KVC_E_INVALID);
    kvc_close(engine);
    kvc_close(client);
    fake_stop(fake);
}

TEST(an_old_daemon_has_no_controllers)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = controller_options(fake);
    struct kvc_client *client = NULL;

    check_error(kvc_open(&options, &client), KVC_E_VERSION);
    check(strstr(kvc_last_error(), "too old for controllers"));
    check(!client);
    fake_stop(fake);
}

/* What is promised too late is released, and then all is as before. */
TEST(an_answer_that_takes_too_long)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);

    fake_lie(fake, FAKE_LATE, MESSAGE_RESERVE);
    check_error(kvc_reserve(client, 40 * MIB, 0, 20), KVC_E_TIMEOUT);
    check_error(kvc_release(client), KVC_E_INVALID);
    check_ok(kvc_reserve(client, 50 * MIB, 0, 0));
    check_eq(fake_count(fake).releases, 1);
    check_eq(fake_count(fake).reserved, 50 * MIB);
    check_ok(kvc_release(client));
    kvc_close(client);
    fake_stop(fake);
}

/* The answer is on its way when patience is over. */
TEST(an_answer_that_crosses_the_release)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);

    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    check_error(kvc_reserve(client, 40 * MIB, 0, 20), KVC_E_TIMEOUT);
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    check_ok(kvc_reserve(client, 50 * MIB, 0, 0));
    check_eq(fake_count(fake).releases, 1);
    check_eq(fake_count(fake).reserved, 50 * MIB);
    check_error(kvc_reserve(client, MIB, 0, 0), KVC_E_INVALID);
    check_ok(kvc_release(client));
    kvc_close(client);
    fake_stop(fake);
}

TEST(a_release_that_is_not_answered)
{
    struct kvc_options options;
    struct kvc_client *client;
    struct fake *fake = fake_with_reservations();

    options = controller_options(fake);
    options.timeout_ms = 100;
    check_ok(kvc_open(&options, &client));
    check_ok(kvc_reserve(client, MIB, 0, LONG_MS));
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    check_error(kvc_release(client), KVC_E_TIMEOUT);
    check_error(kvc_release(client), KVC_E_INVALID);
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    check_ok(kvc_reserve(client, MIB, 0, LONG_MS));
    kvc_close(client);
    fake_stop(fake);
}

TEST(lies)
{
    static const enum fake_lie lies[] = {FAKE_GARBAGE,     FAKE_BAD_LENGTH,   FAKE_BAD_BODY,
                                         FAKE_BAD_VERSION, FAKE_UNKNOWN_TYPE, FAKE_WRONG_TYPE,
                                         FAKE_WRONG_ID,    FAKE_UNASKED,      FAKE_EXTRA_FD};

    for (unsigned i = 0; i < ARRAY_SIZE(lies); i++)
        for (unsigned late = 0; late < 2; late++) {
            struct fake *fake = fake_with_reservations();
            struct kvc_client *client = open_controller(fake);

            fake_lie(fake, lies[i], late ? MESSAGE_RELEASE : MESSAGE_RESERVE);
            if (late)
                check_ok(kvc_reserve(client, MIB, 0, 0));
            check_error(late ? kvc_release(client) : kvc_reserve(client, MIB, 0, 0), KVC_E_PROTOCOL);
            check_error(kvc_reserve(client, MIB, 0, 0), KVC_E_DISCONNECTED);
            kvc_close(client);
            fake_stop(fake);
        }
}

TEST(a_daemon_that_ends)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);

    check_ok(kvc_reserve(client, MIB, 0, 0));
    check_eq(kill(fake_pid(fake), SIGKILL), 0);
    check_error(kvc_release(client), KVC_E_DISCONNECTED);
    check_error(kvc_reserve(client, MIB, 0, 0), KVC_E_DISCONNECTED);
    kvc_close(client);
    fake_stop(fake);
}

/* Two threads want one each: one gets it, the other is told so, at once. */
static void *reserve_too(void *data)
{
    struct kvc_client *client = data;
    int r;

    do
        r = kvc_reserve(client, MIB, 0, 0);
    while (r == 0 && kvc_release(client) == 0);
    check_eq(r, KVC_E_INVALID);
    return NULL;
}

TEST(one_at_a_time_for_all_threads)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);
    pthread_t thread;

    check_eq(pthread_create(&thread, NULL, reserve_too, client), 0);
    while (kvc_reserve(client, 2 * MIB, 0, 0) != 0)
        ;
    check_eq(pthread_join(thread, NULL), 0);
    check_eq(fake_count(fake).reserved, 2 * MIB);
    check_ok(kvc_release(client));
    kvc_close(client);
    fake_stop(fake);
}

static atomic_bool is_over;

static int is_interrupted(void *data)
{
    return atomic_load(&is_over);
}

static void *interrupt(void *data)
{
    while (fake_count(data).late == 0)
        ;
    atomic_store(&is_over, true);
    return NULL;
}

TEST(an_interrupted_wait)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_options options = controller_options(fake);
    struct kvc_client *client;
    pthread_t thread;

    options.interrupted = is_interrupted;
    check_ok(kvc_open(&options, &client));
    fake_lie(fake, FAKE_LATE, MESSAGE_RESERVE);
    check_eq(pthread_create(&thread, NULL, interrupt, fake), 0);
    check_error(kvc_reserve(client, MIB, 0, -1), KVC_E_INTERRUPTED);
    check_eq(pthread_join(thread, NULL), 0);
    atomic_store(&is_over, false);
    check_ok(kvc_reserve(client, 2 * MIB, 0, 0));
    check_eq(fake_count(fake).reserved, 2 * MIB);
    kvc_close(client);
    fake_stop(fake);
}

TEST(a_forked_child)
{
    struct fake *fake = fake_with_reservations();
    struct kvc_client *client = open_controller(fake);
    pid_t child;
    int status;

    check_ok(kvc_reserve(client, MIB, 0, 0));
    child = fork();
    check(child >= 0);
    if (child == 0) {
        bool ok = kvc_release(client) == KVC_E_FORKED && kvc_reserve(client, 1, 0, 0) == KVC_E_FORKED;

        kvc_close(client);
        _exit(ok ? 0 : 1);
    }
    check_eq(waitpid(child, &status, 0), child);
    check_eq(status, 0);
    check_eq(fake_count(fake).reserved, MIB);
    check_ok(kvc_release(client));
    kvc_close(client);
    fake_stop(fake);
}
