/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wire/status.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

static const struct status_values example = {
    .limit_bytes = 1, .used_bytes = 2, .budget_bytes = UINT64_MAX, .flags = STATUS_FLAG_FROZEN};

static void check_values(const struct status_page *page, const struct status_values *expected)
{
    struct status_values values;

    check(status_page_read(page, &values));
    check(memcmp(&values, expected, sizeof(values)) == 0);
}

/* A file as a daemon would send it, right but for what the arguments change. */
static int make_file(size_t size, int seals, uint32_t magic, uint32_t struct_size)
{
    struct status_page page = {.magic = magic, .size = struct_size};
    int fd = memfd_create("status", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    check(fd >= 0);
    check_eq(ftruncate(fd, (off_t)size), 0);
    check_eq(pwrite(fd, &page, sizeof(page), 0), sizeof(page));
    check_eq(ftruncate(fd, (off_t)size), 0);
    check_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int map_file(size_t size, int seals, uint32_t magic, uint32_t struct_size)
{
    int fd = make_file(size, seals, magic, struct_size);
    const struct status_page *page = NULL;
    int r = status_page_map(fd, &page);

    close(fd);
    check((r == 0) == (page != NULL));
    status_page_unmap(page);
    return r;
}

TEST(what_is_written_is_read)
{
    struct status_page *page;
    const struct status_page *view;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    check_eq(status_page_map(fd, &view), 0);
    close(fd);
    check_values(view, &(struct status_values){0});
    status_page_write(page, &example);
    check_values(view, &example);
    page = status_page_free(page);
    check_values(view, &example);
    view = status_page_unmap(view);
    check(!page && !view);
    check(!status_page_free(NULL) && !status_page_unmap(NULL));
}

TEST(layout_is_the_documented_one)
{
    check_eq(offsetof(struct status_page, magic), 0);
    check_eq(offsetof(struct status_page, size), 4);
    check_eq(offsetof(struct status_page, sequence), 8);
    check_eq(offsetof(struct status_page, limit_bytes), 16);
    check_eq(offsetof(struct status_page, used_bytes), 24);
    check_eq(offsetof(struct status_page, budget_bytes), 32);
    check_eq(offsetof(struct status_page, flags), 40);
    check_eq(offsetof(struct status_page, pressure_bytes), 48);
    check_eq(sizeof(struct status_page), 56);
    check_eq(STATUS_SIZE_FIRST, 48);
}

TEST(receiver_can_neither_write_nor_resize)
{
    struct status_page *page;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    check_eq(pwrite(fd, "x", 1, 0), -1);
    check_eq(errno, EPERM);
    check(mmap(NULL, STATUS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    check_eq(ftruncate(fd, 0), -1);
    check_eq(ftruncate(fd, 2 * STATUS_PAGE_SIZE), -1);
    check_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, STATUS_PAGE_SIZE), -1);
    check_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    check_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
    status_page_free(page);
    close(fd);
}

TEST(reader_cannot_be_given_write_access_later)
{
    struct status_page *page;
    const struct status_page *view;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    check_eq(status_page_map(fd, &view), 0);
    check_eq(mprotect((void *)view, STATUS_PAGE_SIZE, PROT_READ | PROT_WRITE), -1);
    status_page_unmap(view);
    status_page_free(page);
    close(fd);
}

TEST(reader_refuses_what_could_kill_or_mislead_it)
{
    uint32_t size = STATUS_SIZE_FIRST;

    check_eq(map_file(STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC, size), 0);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC, sizeof(struct status_page) + 8), 0);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC, size - 8), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC, STATUS_PAGE_SIZE + 1), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC + 1, size), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS & ~F_SEAL_SHRINK, STATUS_MAGIC, size), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE, SEALS & ~F_SEAL_FUTURE_WRITE, STATUS_MAGIC, size), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE, 0, STATUS_MAGIC, size), -EBADMSG);
    check_eq(map_file(0, SEALS, STATUS_MAGIC, size), -EBADMSG);
    check_eq(map_file(STATUS_PAGE_SIZE - 1, SEALS, STATUS_MAGIC, size), -EBADMSG);
    check_eq(map_file(2 * STATUS_PAGE_SIZE, SEALS, STATUS_MAGIC, size), -EBADMSG);
}

TEST(what_an_older_writer_does_not_know_reads_as_zero)
{
    struct status_page *page;
    const struct status_page *view;
    struct status_values values;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    status_page_write(page, &(struct status_values){.limit_bytes = 5, .pressure_bytes = 6});
    check_eq(status_page_map(fd, &view), 0);
    check(status_page_read(view, &values));
    check_eq(values.pressure_bytes, 6);
    page->size = STATUS_SIZE_FIRST;
    check(status_page_read(view, &values));
    check_eq(values.limit_bytes, 5);
    check_eq(values.pressure_bytes, 0);
    status_page_unmap(view);
    status_page_free(page);
    close(fd);
}

TEST(reader_refuses_other_kinds_of_files)
{
    const struct status_page *page;
    int fds[2];

    check_eq(pipe2(fds, O_CLOEXEC), 0);
    check_eq(status_page_map(fds[0], &page), -EBADMSG);
    close(fds[0]);
    close(fds[1]);
    check_eq(status_page_map(-1, &page), -EBADF);
}

TEST(a_writer_that_died_halfway_does_not_stop_readers)
{
    struct status_page *page;
    struct status_values values;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    status_page_write(page, &example);
    atomic_fetch_add(&page->sequence, 1);
    check(!status_page_read(page, &values));
    check(memcmp(&values, &example, sizeof(values)) == 0);
    status_page_free(page);
    close(fd);
}

static _Noreturn void write_until_killed(struct status_page *page)
{
    for (uint64_t i = 0;; i++)
        status_page_write(page, &(struct status_values){i, i, i, i});
}

TEST(copies_are_never_torn)
{
    struct status_page *page;
    const struct status_page *view;
    struct status_values values;
    uint64_t changes = 0, last = 0;
    pid_t child;
    int fd;

    check_eq(status_page_new(&page, &fd), 0);
    check_eq(status_page_map(fd, &view), 0);
    child = fork();
    check(child >= 0);
    if (child == 0)
        write_until_killed(page);
    while (changes < 20000) {
        if (!status_page_read(view, &values))
            continue;
        check(values.limit_bytes >= last);
        check_eq(values.limit_bytes, values.used_bytes);
        check_eq(values.limit_bytes, values.budget_bytes);
        check_eq(values.limit_bytes, values.flags);
        changes += values.limit_bytes != last;
        last = values.limit_bytes;
    }
    kill(child, SIGKILL);
    check_eq(waitpid(child, NULL, 0), child);
    status_page_unmap(view);
    status_page_free(page);
    close(fd);
}
