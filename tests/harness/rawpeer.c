/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A peer that does what no decent client would. It reads commands from standard input, one a line, and
 * answers each with one line that begins with "ok" or "error"; end of input ends it. One connection at a
 * time:
 *
 *     connect PATH              a previous connection is closed
 *     more N PATH               N further connections that say nothing; closed with the process
 *     raw HEX [FDS]             sends these bytes as one packet, with that many descriptors
 *     send TYPE REQUEST [FIELD=VALUE ...]
 *                               sends a message; fields as in message_text.h
 *     flood N TYPE REQUEST [FIELD=VALUE ...]
 *                               sends a message N times, reading nothing; says how many the socket took
 *                               before it took no more for a second
 *     receive [MS]              waits for a message: "ok TYPE request=N fds=N FIELD=VALUE ...", or
 *                               "ok nothing", "ok closed", "ok violation REASON"
 *     lease REGION              the region's line of the lease file that came with the last Welcome: "ok
 *                               OFFERED CLAIMED CACHED PINNED"
 *     lease REGION claim|unclaim|spend PAGES
 *                               changes the word as a client does: "ok PAGES", as many as it got
 *     lease REGION write WORD   scribbles
 *     lease REGION hint CACHED PINNED
 *     punch                     a hole into the lease file
 *     shorten                   the lease file, which must fail
 *     child COMMAND             a child carries it out and ends
 *     keep                      descriptors that are received from now on stay open
 *     fork                      leaves a child with the socket (and with what was kept) that waits to be
 *                               killed
 *     shutdown                  no more packets will be sent
 *     close
 *     cycles N PATH             N processes that connect, go one of several ways, and die: see cycle_run()
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "message_text.h"
#include "wire/lease_file.h"
#include "wire/link.h"

#define QUEUE_MAX 16
#define WAIT_MS 30000
#define FLOOD_WAIT_MS 1000
#define FDS_MAX 253 /* more the kernel refuses */

struct peer {
    struct link *link;
    bool keeps;
    int lease_fd;
    struct lease_line *lines;
};

static int answer(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int answer(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    return fflush(stdout);
}

static int answer_errno(int error)
{
    return answer("error %s", strerror(-error));
}

static int connect_socket(const char *path, int *ret_fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, r;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        r = -errno;
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int connect_link(const char *path, struct link **ret)
{
    int fd = -1, r;

    r = connect_socket(path, &fd);
    if (r < 0)
        return r;
    r = link_new(fd, true, QUEUE_MAX, ret);
    if (r < 0)
        close(fd);
    return r;
}

static bool wait_for(struct link *link, short events, int wait_ms)
{
    struct pollfd pollfd = {.fd = link_fd(link), .events = events};

    return poll(&pollfd, 1, wait_ms) > 0;
}

/* Waits for room; a daemon that doesn't read for so long is -EAGAIN. */
static int send_packet(struct link *link, const void *bytes, size_t size, unsigned n_fds, int wait_ms)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[FDS_MAX] = {0}; /* each is standard input */

    if (n_fds > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        *CMSG_FIRSTHDR(&msg) = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n_fds * sizeof(int))};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n_fds * sizeof(int));
    }
    while (sendmsg(link_fd(link), &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno != EAGAIN || !wait_for(link, POLLOUT, wait_ms))
            return -errno;
    }
    return 0;
}

/* ---- Commands ---- */

static int run_connect(struct peer *peer, char **words)
{
    struct link *link;
    int r;

    if (!words[0])
        return answer("error connect PATH");
    peer->link = link_free(peer->link);
    r = connect_link(words[0], &link);
    if (r < 0)
        return answer_errno(r);
    peer->link = link;
    return answer("ok");
}

static int run_more(struct peer *peer, char **words)
{
    uint64_t n;
    int fd, r;

    if (!words[0] || !words[1] || parse_u64(words[0], &n) < 0)
        return answer("error more N PATH");
    for (uint64_t i = 0; i < n; i++) {
        r = connect_socket(words[1], &fd);
        if (r < 0)
            return answer("error %s at %" PRIu64, strerror(-r), i);
    }
    return answer("ok");
}

static int run_raw(struct peer *peer, char **words)
{
    ptrdiff_t size = words[0] ? message_text_unhex(words[0]) : -EINVAL;
    uint64_t n_fds = 0;
    int r;

    if (size < 0 || (words[1] && parse_u64(words[1], &n_fds) < 0) || n_fds > FDS_MAX)
        return answer("error raw HEX [FDS]");
    r = send_packet(peer->link, words[0], (size_t)size, (unsigned)n_fds, WAIT_MS);
    return r < 0 ? answer_errno(r) : answer("ok");
}

/* TYPE REQUEST FIELD=VALUE ... as a frame. */
static int encode(char **words, uint8_t frame[static FRAME_SIZE_MAX], size_t *ret_size,
                  char error[static MESSAGE_TEXT_ERROR_MAX])
{
    ProtobufCMessage *message;
    uint64_t request;
    uint16_t type;
    int r;

    snprintf(error, MESSAGE_TEXT_ERROR_MAX, "TYPE REQUEST [FIELD=VALUE ...]");
    if (!words[0] || !words[1] || parse_u64(words[1], &request) < 0)
        return -EINVAL;
    r = message_text_parse(words[0], words + 2, &type, &message, error);
    if (r < 0)
        return r;
    r = codec_encode(type, (uint32_t)request, 0, message, frame, ret_size);
    message_text_free(message);
    if (r != 0) {
        snprintf(error, MESSAGE_TEXT_ERROR_MAX, "it does not fit a frame");
        return -EINVAL;
    }
    return 0;
}

static int run_send(struct peer *peer, char **words)
{
    static uint8_t frame[FRAME_SIZE_MAX];
    char error[MESSAGE_TEXT_ERROR_MAX];
    size_t size;
    int r;

    if (encode(words, frame, &size, error) < 0)
        return answer("error %s", error);
    r = send_packet(peer->link, frame, size, 0, WAIT_MS);
    return r < 0 ? answer_errno(r) : answer("ok");
}

static int run_flood(struct peer *peer, char **words)
{
    static uint8_t frame[FRAME_SIZE_MAX];
    char error[MESSAGE_TEXT_ERROR_MAX];
    uint64_t n, sent;
    size_t size;

    if (!words[0] || parse_u64(words[0], &n) < 0)
        return answer("error flood N TYPE REQUEST [FIELD=VALUE ...]");
    if (encode(words + 1, frame, &size, error) < 0)
        return answer("error %s", error);
    for (sent = 0; sent < n; sent++) {
        if (send_packet(peer->link, frame, size, 0, FLOOD_WAIT_MS) < 0)
            break;
    }
    return answer("ok %" PRIu64, sent);
}

/* As link_receive(), but waits. */
static int receive(struct link *link, int wait_ms, struct message *ret, struct fdset *ret_fds)
{
    int r = link_receive(link, ret, ret_fds);

    if (r == LINK_E_EMPTY && wait_for(link, POLLIN, wait_ms))
        r = link_receive(link, ret, ret_fds);
    return r;
}

/* The second descriptor of a Welcome. */
static void keep_leases(struct peer *peer, const struct message *message, struct fdset *fds)
{
    if (message->type != MESSAGE_WELCOME || fds->n < 2)
        return;
    peer->lines = lease_file_unmap(peer->lines);
    close_fd(peer->lease_fd);
    peer->lease_fd = fdset_steal(fds, 1);
    if (lease_file_map(peer->lease_fd, &peer->lines) < 0)
        answer("error the lease file cannot be mapped");
}

static int run_receive(struct peer *peer, char **words)
{
    struct message message;
    struct fdset fds = {0};
    uint64_t wait_ms = WAIT_MS;
    int r;

    if (words[0] && parse_u64(words[0], &wait_ms) < 0)
        return answer("error receive [MS]");
    r = receive(peer->link, (int)wait_ms, &message, &fds);
    if (r == LINK_E_EMPTY)
        return answer("ok nothing");
    if (r == LINK_E_CLOSED)
        return answer("ok closed");
    if (r == LINK_E_VIOLATION)
        return answer("ok violation %s", link_reason(peer->link));
    if (r != 0)
        return answer("error %s", r < 0 ? strerror(-r) : "the descriptor table is full");

    printf("ok %s request=%" PRIu32 " fds=%u", codec_type_name(message.type), message.request, fds.n);
    message_text_print(message.body, stdout);
    keep_leases(peer, &message, &fds);
    message_deinit(&message);
    if (!peer->keeps)
        fdset_deinit(&fds);
    return answer("%s", "");
}

static int run_keep(struct peer *peer, char **words)
{
    peer->keeps = true;
    return answer("ok");
}

static int run_fork(struct peer *peer, char **words)
{
    pid_t child = fork();

    if (child < 0)
        return answer_errno(-errno);
    if (child > 0)
        return answer("ok %d", (int)child);
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    while (true)
        pause();
}

static int run_line(struct peer *peer, char *line);

/* The words are still one line but for the zeros between them. */
static int run_child(struct peer *peer, char **words)
{
    pid_t child;

    for (char **word = words; word[0] && word[1]; word++)
        word[0][strlen(word[0])] = ' ';
    child = words[0] ? fork() : -1;
    if (child < 0)
        return answer("error child COMMAND");
    if (child == 0) {
        run_line(peer, words[0]);
        _exit(0);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    return 0;
}

static int run_shutdown(struct peer *peer, char **words)
{
    shutdown(link_fd(peer->link), SHUT_WR);
    return answer("ok");
}

static int run_close(struct peer *peer, char **words)
{
    peer->link = link_free(peer->link);
    return answer("ok");
}

static int run_become(struct peer *peer, char **words)
{
    uint64_t uid;

    if (!words[0] || parse_u64(words[0], &uid) < 0)
        return answer("error become UID");
    if (setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
        return answer_errno(-errno);
    return answer("ok");
}

/* ---- Leases ---- */

static int print_line(const struct lease_line *line)
{
    struct lease lease = lease_read(line);

    return answer("ok %" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64, lease.offered, lease.claimed,
                  atomic_load(&line->cached_pages), atomic_load(&line->pinned_pages));
}

static int change_line(struct lease_line *line, const char *how, uint64_t value, uint64_t second)
{
    uint32_t pages = (uint32_t)value;

    if (strcmp(how, "claim") == 0)
        return answer("ok %" PRIu32, lease_claim(line, pages));
    if (strcmp(how, "unclaim") == 0)
        return answer("ok %" PRIu32, lease_unclaim(line, pages));
    if (strcmp(how, "spend") == 0)
        return answer("ok %" PRIu32, lease_spend(line, pages) ? pages : 0);
    if (strcmp(how, "write") == 0) {
        atomic_store(&line->word, value);
        return answer("ok");
    }
    if (strcmp(how, "hint") == 0) {
        atomic_store(&line->cached_pages, value);
        atomic_store(&line->pinned_pages, second);
        return answer("ok");
    }
    return answer("error claim, unclaim, spend, write or hint");
}

static int run_lease(struct peer *peer, char **words)
{
    uint64_t region, value = 0, second = 0;

    if (!words[0] || parse_u64(words[0], &region) < 0 || region < 1 || region > LEASE_LINES)
        return answer("error lease REGION ...");
    if (!peer->lines)
        return answer("error there is no lease file");
    if (!words[1])
        return print_line(&peer->lines[region - 1]);
    if (!words[2] || parse_u64(words[2], &value) < 0 || (words[3] && parse_u64(words[3], &second) < 0))
        return answer("error lease REGION HOW NUMBER [NUMBER]");
    return change_line(&peer->lines[region - 1], words[1], value, second);
}

static int run_punch(struct peer *peer, char **words)
{
    if (fallocate(peer->lease_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LEASE_FILE_SIZE) < 0)
        return answer_errno(-errno);
    return answer("ok");
}

static int run_shorten(struct peer *peer, char **words)
{
    return ftruncate(peer->lease_fd, 0) < 0 ? answer_errno(-errno) : answer("ok");
}

/* ---- Cycles ---- */

/* A cycle that cannot do what it should exits, with a number for where. */
static void cycle_send(struct link *link, const char *line)
{
    uint8_t frame[FRAME_SIZE_MAX];
    char error[MESSAGE_TEXT_ERROR_MAX], text[256], *rest = text, *words[16] = {0};
    size_t size;

    snprintf(text, sizeof(text), "%s", line);
    for (size_t n = 0; n < ARRAY_SIZE(words) - 1 && rest; n++)
        words[n] = strsep(&rest, " ");
    if (encode(words, frame, &size, error) < 0 || send_packet(link, frame, size, 0, WAIT_MS) < 0)
        _exit(2);
}

static void cycle_receive(struct link *link, uint16_t type, struct message *ret)
{
    struct fdset fds = {0};

    if (receive(link, WAIT_MS, ret, &fds) != 0)
        _exit(3);
    if (ret->type != type)
        _exit(4);
}

static void cycle_take(struct link *link)
{
    struct message message;
    char take[64];

    cycle_send(link, "RegionOpen 2 segments=1 capacity_pages=8 page_extents=1,0,0,0");
    cycle_receive(link, MESSAGE_REGION_OPENED, &message);
    snprintf(take, sizeof(take), "Take 3 pages=1 region=%" PRIu32,
             ((const Kvcached__RegionOpened *)message.body)->region);
    cycle_send(link, take);
}

enum cycle_stage {
    CYCLE_SILENT,   /* connects */
    CYCLE_GARBAGE,  /* ... and sends garbage */
    CYCLE_UNHEARD,  /* says Hello and doesn't wait for an answer */
    CYCLE_WELCOMED, /* joins an instance of its own */
    CYCLE_TAKING,   /* ... and takes a page, which is on its way or in its socket when it dies */
    CYCLE_HOLDING,  /* ... and has it in its hands */
    N_CYCLE_STAGES,
};

/* Never returns: each of these processes ends in the middle of something. */
static _Noreturn void cycle_run(const char *path, uint64_t number)
{
    enum cycle_stage stage = number % N_CYCLE_STAGES;
    struct message message;
    struct link *link;
    char hello[128];

    if (connect_link(path, &link) < 0)
        _exit(1);
    if (stage == CYCLE_GARBAGE)
        send_packet(link, "garbage", strlen("garbage"), 3, WAIT_MS);
    snprintf(hello, sizeof(hello),
             "Hello 1 min_version=1 max_version=1 role=ROLE_ENGINE instance=cycle-%" PRIu64, number);
    if (stage >= CYCLE_UNHEARD)
        cycle_send(link, hello);
    if (stage >= CYCLE_WELCOMED)
        cycle_receive(link, MESSAGE_WELCOME, &message);
    if (stage >= CYCLE_TAKING)
        cycle_take(link);
    if (stage == CYCLE_HOLDING)
        cycle_receive(link, MESSAGE_GRANT, &message);
    kill(getpid(), SIGKILL);
    _exit(5);
}

/* A process that doesn't die of its own signal has met with something unexpected. */
static int run_cycles(struct peer *peer, char **words)
{
    uint64_t n;
    int status;

    if (!words[0] || !words[1] || parse_u64(words[0], &n) < 0)
        return answer("error cycles N PATH");
    for (uint64_t i = 0; i < n; i++) {
        pid_t child = fork();

        if (child < 0)
            return answer_errno(-errno);
        if (child == 0)
            cycle_run(words[1], i);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            ;
        if (WIFEXITED(status))
            return answer("error cycle %" PRIu64 " ended early, with status %d", i, WEXITSTATUS(status));
    }
    return answer("ok");
}

static const struct command {
    const char *name;
    bool needs_link;
    int (*run)(struct peer *peer, char **words);
} commands[] = {
    {"connect", false, run_connect}, {"more", false, run_more},   {"cycles", false, run_cycles},
    {"become", false, run_become},   {"keep", false, run_keep},   {"raw", true, run_raw},
    {"send", true, run_send},        {"flood", true, run_flood},  {"receive", true, run_receive},
    {"fork", true, run_fork},        {"child", true, run_child},  {"shutdown", true, run_shutdown},
    {"close", true, run_close},      {"lease", false, run_lease}, {"punch", false, run_punch},
    {"shorten", false, run_shorten},
};

static int run_line(struct peer *peer, char *line)
{
    char *words[32] = {0}, *rest = line;

    for (size_t n = 0; n < ARRAY_SIZE(words) - 1 && rest; n++)
        words[n] = strsep(&rest, " ");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(words[0], commands[i].name) != 0)
            continue;
        if (commands[i].needs_link && !peer->link)
            return answer("error not connected");
        return commands[i].run(peer, words + 1);
    }
    return answer("error unknown command %.40s", line);
}

int main(void)
{
    struct peer peer = {.lease_fd = -1};
    char *line = NULL;
    size_t size = 0;
    ssize_t n;

    while ((n = getline(&line, &size, stdin)) > 0) {
        if (line[n - 1] == '\n')
            line[n - 1] = '\0';
        if (run_line(&peer, line) < 0)
            break;
    }
    free(line);
    link_free(peer.link);
    lease_file_unmap(peer.lines);
    close_fd(peer.lease_fd);
    return 0;
}
