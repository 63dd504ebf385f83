/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The donor: a process that owns extents and hands their descriptors out on request. Its loop is the barest
 * that a libuv server can have: one uv_poll, one request, one answer. The time of its round trip is what any
 * broker over a socket has to pay.
 */

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uv.h>

#include "rights.h"
#include "side.h"

struct donor {
    pid_t pid;
    int socket;
};

/* In the donor's process. */
struct store {
    struct cuda_driver *cuda;
    unsigned n;
    CUmemGenericAllocationHandle handles[PAGES_MAX];
    int fds[PAGES_MAX];
    int socket;
};

/* ---- The donor's process ---- */

static void fill_store(struct store *store, CUdevice device)
{
    const CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
    };

    for (unsigned i = 0; i < store->n; i++) {
        driver_check(store->cuda, store->cuda->cuMemCreate(&store->handles[i], PAGE_BYTES, &prop, 0),
                     "cuMemCreate");
        driver_check(store->cuda,
                     store->cuda->cuMemExportToShareableHandle(&store->fds[i], store->handles[i],
                                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                     "cuMemExportToShareableHandle");
    }
}

static void empty_store(struct store *store)
{
    for (unsigned i = 0; i < store->n; i++) {
        close(store->fds[i]);
        driver_check(store->cuda, store->cuda->cuMemRelease(store->handles[i]), "cuMemRelease");
    }
    cuda_driver_unload(store->cuda);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct store *store = poll->data;
    uint32_t n;
    ssize_t size;

    (void)status;
    (void)events;
    size = recv(store->socket, &n, sizeof(n), 0);
    if (size == sizeof(n) && n <= store->n)
        send_fds(store->socket, store->fds, n);
    else
        uv_stop(poll->loop);
}

static void run_loop(struct store *store)
{
    uv_loop_t loop;
    uv_poll_t poll;

    if (uv_loop_init(&loop) < 0 || uv_poll_init(&loop, &poll, store->socket) < 0)
        die("no event loop");
    poll.data = store;
    uv_poll_start(&poll, UV_READABLE, on_readable);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&poll, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
}

static void be_donor(int socket, const char *driver_path, const char *uuid, unsigned n_pages, int processor)
{
    struct store *store = calloc(1, sizeof(*store));
    CUdevice device;

    if (!store)
        die("out of memory");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin_to(processor);
    store->socket = socket;
    store->n = n_pages;
    driver_open(driver_path, uuid, &store->cuda, &device);
    fill_store(store, device);
    run_loop(store);
    empty_store(store);
    free(store);
}

/* ---- The benchmark's process ---- */

struct donor *donor_new(const char *driver_path, const char *uuid, unsigned n_pages, int processor)
{
    struct donor *donor = calloc(1, sizeof(*donor));
    int sockets[2];

    if (!donor)
        die("out of memory");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        die("socketpair: %s", strerror(errno));
    donor->pid = fork();
    if (donor->pid < 0)
        die("fork: %s", strerror(errno));
    if (donor->pid == 0) {
        close(sockets[0]);
        be_donor(sockets[1], driver_path, uuid, n_pages, processor);
        exit(0);
    }
    close(sockets[1]);
    donor->socket = sockets[0];
    return donor;
}

void donor_free(struct donor *donor)
{
    int status;

    close(donor->socket);
    if (waitpid(donor->pid, &status, 0) != donor->pid || status != 0)
        die("the donor process failed");
    free(donor);
}

void donor_get(struct donor *donor, unsigned n_fds, int *fds)
{
    uint32_t n = n_fds;

    if (send(donor->socket, &n, sizeof(n), MSG_NOSIGNAL) != sizeof(n))
        die("the donor process has ended");
    receive_fds(donor->socket, fds, n);
}

static void get_and_close(void *state, unsigned n_fds)
{
    int fds[PAGES_MAX];

    donor_get(state, n_fds, fds);
    for (unsigned i = 0; i < n_fds; i++)
        close(fds[i]);
}

static void get_nothing(void *state, unsigned n_fds)
{
    (void)n_fds;
    donor_get(state, 0, NULL);
}

struct side donor_side(struct donor *donor)
{
    return (struct side){.name = "bare", .map = get_and_close, .unmap = get_nothing, .state = donor};
}
