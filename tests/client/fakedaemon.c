/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One process, one loop, blocking sends. It is made with fork() before the test touches the driver, because a
 * driver doesn't survive fork().
 */

#include "fakedaemon.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "fakeinternal.h"

struct fake {
    pid_t pid;
    int control;
    char socket[96];
};

struct command {
    enum {
        COMMAND_LIE,
        COMMAND_RELEASE,
        COMMAND_LIMIT,
        COMMAND_ORDER,
        COMMAND_COUNT,
        COMMAND_NOTICE,
        COMMAND_PRESS,
        COMMAND_WITHDRAW,
        COMMAND_SCRIBBLE
    } what;
    uint64_t value;
    uint32_t at, after;
    bool courtesy;
    struct fake_order order;
};

/* ---- The loop ---- */

static struct peer *peer_free(struct daemon *d, struct peer *peer)
{
    answers_end(d, peer);
    leases_end(d, peer);
    reservations_end(d, peer);
    for (unsigned i = 0; i < REGIONS_MAX; i++)
        d->counts.regions -= peer->region_open[i];
    d->counts.unacknowledged -= peer->awaits_ack;
    d->counts.peers--;
    close_fd(peer->fd);
    free(peer);
    show_status(d);
    return NULL;
}

/* NULL when it is gone. */
static struct peer *serve(struct daemon *d, struct peer *peer)
{
    uint8_t packet[FRAME_SIZE_MAX];
    struct frame_header header;
    struct message message;
    ssize_t n = recv(peer->fd, packet, sizeof(packet), 0);

    if (n <= 0)
        return peer_free(d, peer);
    check_eq(frame_read_header(packet, (size_t)n, &header), 0);
    check_eq(codec_decode(packet, &header, &message), 0);
    answers_message(d, peer, &message);
    message_deinit(&message);
    return peer;
}

static void accept_peer(struct daemon *d)
{
    for (unsigned i = 0; i < PEERS_MAX; i++) {
        if (d->peers[i])
            continue;
        d->peers[i] = calloc(1, sizeof(struct peer));
        list_init(&d->peers[i]->grants);
        list_init(&d->peers[i]->extents);
        d->peers[i]->fd = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);
        check(d->peers[i]->fd >= 0);
        d->counts.peers++;
        return;
    }
    test_fail(__FILE__, __LINE__, "too many peers for a fake daemon");
}

static void release_held(struct daemon *d)
{
    orders_release(d);
    for (unsigned i = 0; i < PEERS_MAX; i++) {
        if (!d->peers[i])
            continue;
        leases_release(d, d->peers[i]);
        reservations_release(d, d->peers[i]);
        answers_release(d, d->peers[i]);
    }
}

/* False when the test is over. */
static bool obey(struct daemon *d)
{
    struct command command;

    if (recv(d->control, &command, sizeof(command), 0) != sizeof(command))
        return false;
    if (command.what == COMMAND_LIE) {
        d->lie = (enum fake_lie)command.value;
        d->lie_at = (uint16_t)command.at;
        d->lie_after = command.after;
    } else if (command.what == COMMAND_RELEASE) {
        release_held(d);
    } else if (command.what == COMMAND_ORDER) {
        orders_give(d, &command.order);
        for (unsigned i = 0; i < PEERS_MAX; i++)
            if (d->peers[i])
                answers_send_grants(d, d->peers[i]);
    } else if (command.what == COMMAND_LIMIT) {
        d->limit = command.value;
        show_status(d);
    } else if (command.what == COMMAND_NOTICE) {
        leases_notify(d, command.value, command.at, command.courtesy);
    } else if (command.what == COMMAND_PRESS) {
        d->pressure = command.value;
        show_status(d);
    } else if (command.what == COMMAND_WITHDRAW) {
        leases_withdraw(d, (uint32_t)command.value);
    } else if (command.what == COMMAND_SCRIBBLE) {
        leases_scribble(d);
    }
    leases_count_hints(d);
    d->counts.bytes = d->used;
    check_eq(send(d->control, &d->counts, sizeof(d->counts), MSG_NOSIGNAL), sizeof(d->counts));
    return true;
}

/* What clients have said comes before what the test asks, so that it sees what came of it; within reason, for
 * threads of a test may go on for ever. */
static bool turn(struct daemon *d)
{
    struct pollfd pfds[PEERS_MAX + 2] = {{.fd = d->control, .events = POLLIN},
                                         {.fd = d->listener, .events = POLLIN}};
    bool is_quiet = true;

    for (unsigned i = 0; i < PEERS_MAX; i++)
        pfds[i + 2] = (struct pollfd){.fd = d->peers[i] ? d->peers[i]->fd : -1, .events = POLLIN};
    if (poll(pfds, PEERS_MAX + 2, -1) < 0)
        return errno == EINTR;
    for (unsigned i = 0; i < PEERS_MAX; i++) {
        if (!pfds[i + 2].revents)
            continue;
        d->peers[i] = serve(d, d->peers[i]);
        is_quiet = false;
    }
    if (pfds[1].revents)
        accept_peer(d);
    if (!pfds[0].revents)
        return true;
    d->n_put_off = is_quiet || d->n_put_off == PUT_OFF_MAX ? 0 : d->n_put_off + 1;
    return d->n_put_off || obey(d);
}

static void open_device(struct daemon *d)
{
    char error[CUDA_DRIVER_ERROR_MAX], sizes[32];
    CUuuid uuid;

    snprintf(sizes, sizeof(sizes), "%" PRIu64, d->settings.total_bytes + 512 * MIB);
    if (cuda_driver_load_emulated(getenv("KVCACHED_EMULATOR_DIR"), d->devices, sizes, &d->driver, error) < 0)
        test_fail(__FILE__, __LINE__, "%s", error);
    check_eq(cuda_device_by_index(d->driver, 0, &d->device), 0);
    check_eq(d->driver->cuDeviceGetUuid(&uuid, d->device), CUDA_SUCCESS);
    cuda_uuid_format(d->uuid, &uuid);
}

_Noreturn static void run(struct daemon *d, const char *ready)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_device(d);
    check_eq(status_page_new(&d->status, &d->status_fd), 0);
    show_status(d);
    check_eq(send(d->control, ready, 1, 0), 1);
    while (turn(d))
        ;
    for (unsigned i = 0; i < PEERS_MAX; i++)
        if (d->peers[i])
            peer_free(d, d->peers[i]);
    cuda_driver_unload(d->driver);
    status_page_free(d->status);
    exit(0);
}

/* ---- The test's side ---- */

static struct fake_settings complete(const struct fake_settings *given)
{
    struct fake_settings s = given ? *given : (struct fake_settings){0};

    s.total_bytes = s.total_bytes ? s.total_bytes : GIB;
    s.told_total = s.told_total ? s.told_total : s.total_bytes;
    s.limit_bytes = s.limit_bytes ? s.limit_bytes : s.total_bytes;
    if (!s.class_bytes[0]) {
        s.class_bytes[0] = 2 * MIB;
        s.class_bytes[1] = 8 * MIB;
    }
    return s;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 8) == 0);
    return fd;
}

struct fake *fake_start(const struct fake_settings *settings)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    struct daemon daemon = {.settings = complete(settings)};
    int pair[2];
    char ready;

    snprintf(fake->socket, sizeof(fake->socket), "%s/socket", test_folder());
    snprintf(daemon.devices, sizeof(daemon.devices), "%s/devices", test_folder());
    daemon.limit = daemon.settings.limit_bytes;
    while (daemon.n_classes < CLASSES_MAX && daemon.settings.class_bytes[daemon.n_classes])
        daemon.n_classes++;
    daemon.listener = listen_at(fake->socket);
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    daemon.control = pair[1];
    fake->control = pair[0];
    fflush(NULL);
    fake->pid = fork();
    if (fake->pid == 0) {
        close_fd(pair[0]);
        run(&daemon, "r");
    }
    close_fd(pair[1]);
    close_fd(daemon.listener);
    check(fake->pid > 0 && recv(fake->control, &ready, 1, 0) == 1);
    return fake;
}

void fake_stop(struct fake *fake)
{
    int status;

    close_fd(fake->control);
    check_eq(waitpid(fake->pid, &status, 0), fake->pid);
    check(WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGKILL);
    check_eq(unlink(fake->socket), 0);
    free(fake);
}

const char *fake_socket(const struct fake *fake)
{
    return fake->socket;
}

static struct fake_counts command(struct fake *fake, struct command command)
{
    struct fake_counts counts;

    check_eq(send(fake->control, &command, sizeof(command), MSG_NOSIGNAL), sizeof(command));
    check_eq(recv(fake->control, &counts, sizeof(counts), 0), sizeof(counts));
    return counts;
}

void fake_lie(struct fake *fake, enum fake_lie lie, enum message_type at)
{
    command(fake, (struct command){.what = COMMAND_LIE, .value = lie, .at = at});
}

void fake_lie_after(struct fake *fake, enum fake_lie lie, enum message_type at, unsigned after)
{
    command(fake, (struct command){.what = COMMAND_LIE, .value = lie, .at = at, .after = after});
}

void fake_order(struct fake *fake, const struct fake_order *order)
{
    command(fake, (struct command){.what = COMMAND_ORDER, .order = *order});
}

void fake_release(struct fake *fake)
{
    command(fake, (struct command){.what = COMMAND_RELEASE});
}

void fake_set_limit(struct fake *fake, uint64_t bytes)
{
    command(fake, (struct command){.what = COMMAND_LIMIT, .value = bytes});
}

void fake_notice(struct fake *fake, uint64_t bytes, uint32_t deadline_ms, bool courtesy)
{
    command(fake, (struct command){
                      .what = COMMAND_NOTICE, .value = bytes, .at = deadline_ms, .courtesy = courtesy});
}

void fake_press(struct fake *fake, uint64_t bytes)
{
    command(fake, (struct command){.what = COMMAND_PRESS, .value = bytes});
}

void fake_withdraw(struct fake *fake, uint64_t pages)
{
    command(fake, (struct command){.what = COMMAND_WITHDRAW, .value = pages});
}

void fake_scribble(struct fake *fake)
{
    command(fake, (struct command){.what = COMMAND_SCRIBBLE});
}

struct fake_counts fake_count(struct fake *fake)
{
    return command(fake, (struct command){.what = COMMAND_COUNT});
}

int fake_pid(const struct fake *fake)
{
    return fake->pid;
}
