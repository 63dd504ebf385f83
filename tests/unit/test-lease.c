/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "wire/lease.h"
#include "wire/lease_file.h"

static void check_lease(const struct lease_line *line, uint32_t offered, uint32_t claimed)
{
    struct lease lease = lease_read(line);

    check_eq(lease.offered, offered);
    check_eq(lease.claimed, claimed);
}

TEST(a_lease_is_offered_claimed_and_spent)
{
    struct lease_line line = {};

    check(lease_offer(&line, 5));
    check_eq(line.word, 5);
    check_eq(lease_claim(&line, 3), 3);
    check_lease(&line, 2, 3);
    check_eq(line.word, UINT64_C(3) << 32 | 2);
    check(!lease_spend(&line, 4));
    check(lease_spend(&line, 2));
    check_lease(&line, 2, 1);
}

TEST(what_is_claimed_cannot_be_withdrawn)
{
    struct lease_line line = {};

    check(lease_offer(&line, 5));
    check_eq(lease_claim(&line, 3), 3);
    check_eq(lease_withdraw(&line, UINT32_MAX), 2);
    check_eq(lease_withdraw(&line, 1), 0);
    check_lease(&line, 0, 3);
}

TEST(claims_become_offers_again)
{
    struct lease_line line = {};

    check(lease_offer(&line, 2));
    check_eq(lease_claim(&line, 9), 2);
    check_eq(lease_unclaim(&line, 9), 2);
    check_eq(lease_unclaim(&line, 1), 0);
    check_lease(&line, 2, 0);
}

TEST(a_scribble_overflows_nothing)
{
    struct lease_line line = {.word = UINT64_MAX};

    check(!lease_offer(&line, 1));
    check_eq(lease_claim(&line, 1), 0);
    check_eq(lease_unclaim(&line, 1), 0);
    check_lease(&line, UINT32_MAX, UINT32_MAX);
}

/* Two sides on one word: nothing is lost and nothing comes from nowhere. */
struct race {
    struct lease_line line;
    uint32_t spent, withdrawn;
};

#define ROUNDS 200000

static void *client(void *data)
{
    struct race *race = data;

    for (unsigned i = 0; i < ROUNDS; i++) {
        lease_claim(&race->line, 2);
        if (i % 3 == 0)
            lease_unclaim(&race->line, 1);
        race->spent += lease_spend(&race->line, 1);
    }
    return NULL;
}

TEST(both_sides_change_it_at_once)
{
    struct race race = {};
    struct lease rest;
    pthread_t thread;

    check_eq(pthread_create(&thread, NULL, client, &race), 0);
    for (unsigned i = 0; i < ROUNDS; i++) {
        check(lease_offer(&race.line, 1));
        race.withdrawn += i % 2 ? lease_withdraw(&race.line, 1) : 0;
    }
    pthread_join(thread, NULL);
    rest = lease_read(&race.line);
    check_eq(race.spent + race.withdrawn + rest.offered + rest.claimed, ROUNDS);
}

TEST(the_file_is_shared_and_keeps_its_size)
{
    struct lease_line *daemon, *client;
    int fd;

    check_eq(lease_file_new(&daemon, &fd), 0);
    check_eq(lease_file_map(fd, &client), 0);
    check(ftruncate(fd, 0) < 0);
    check(lease_offer(&daemon[255], 7));
    check_lease(&client[255], 7, 0);
    check_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LEASE_FILE_SIZE), 0);
    check_lease(&daemon[255], 0, 0);
    close(fd);
    check(!lease_file_unmap(client) && !lease_file_unmap(daemon) && !lease_file_unmap(NULL));
}

TEST(another_file_is_refused)
{
    struct lease_line *lines;
    int fd = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    check(fd >= 0);
    check_eq(ftruncate(fd, LEASE_FILE_SIZE), 0);
    check_eq(lease_file_map(fd, &lines), -EBADMSG); /* not sealed */
    check_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    check_eq(lease_file_map(fd, &lines), 0);
    lease_file_unmap(lines);
    close(fd);
    fd = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    check_eq(ftruncate(fd, LEASE_FILE_SIZE - 4096), 0);
    check_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    check_eq(lease_file_map(fd, &lines), -EBADMSG);
    close(fd);
}

TEST(unspend)
{
    struct lease_line line = {0};

    check(lease_offer(&line, 3));
    check_eq(lease_claim(&line, 2), 2);
    check(lease_spend(&line, 2));
    check_eq(lease_read(&line).claimed, 0);
    lease_unspend(&line, 2);
    check_eq(lease_read(&line).claimed, 2);
    check_eq(lease_read(&line).offered, 1);
    lease_unspend(&line, UINT32_MAX);
    check_eq(lease_read(&line).claimed, UINT32_MAX);
}
