/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Measures what a page costs at a daemon that has nothing else to do, and at one that serves a crowd: many
 * peers, each an instance of its own, that hold many extents between them. Prints "few NANOSECONDS" and "many
 * NANOSECONDS" for each round, then "ready", and keeps the crowd there until its input ends, for somebody who
 * looks at that daemon. For each line of its input it measures that daemon again, and prints "LINE
 * NANOSECONDS" for each round, and "ready".
 *
 * The crowd speaks the protocol itself and imports nothing: what is measured is the daemon. The two daemons
 * serve devices of their own folders, and a process has one driver; so each has a client in a process of its
 * own, which maps and unmaps when it is told.
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "bench.h"
#include "rest.h"
#include "side.h"
#include "wire/link.h"

#define PEERS_MAX 4096
#define PATIENCE_MS 30000

struct arguments {
    const char *few, *many;
    unsigned peers, extents, rounds;
    int processor;
};

struct client {
    pid_t pid;
    int socket;
    struct control *control;
};

struct bench {
    struct link *crowd[PEERS_MAX];
    struct client few, many;
};

/* ---- The crowd ---- */

static struct link *connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct link *link;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die("%s: %s", path, strerror(errno));
    if (link_new(fd, true, 16, &link) < 0)
        die("out of memory");
    return link;
}

static void tell(struct link *link, uint16_t type, uint32_t request, const ProtobufCMessage *body)
{
    if (link_send(link, type, request, body, NULL) != 0)
        die("the daemon does not take a %s", codec_type_name(type));
}

/* Its descriptors are closed: the daemon's books are what counts. */
static void hear(struct link *link, uint16_t type, struct message *ret)
{
    struct pollfd pfd = {.fd = link_fd(link), .events = POLLIN};
    struct fdset fds = {0};
    int r;

    while ((r = link_receive(link, ret, &fds)) == LINK_E_EMPTY)
        if (poll(&pfd, 1, PATIENCE_MS) != 1)
            die("the daemon does not answer");
    fdset_deinit(&fds);
    if (r != 0 || ret->type != type)
        die("the daemon answers with %s where %s was due", r == 0 ? codec_type_name(ret->type) : "nothing",
            codec_type_name(type));
}

static void join(struct link *link, unsigned number)
{
    Kvcached__Hello hello = KVCACHED__HELLO__INIT;
    Kvcached__RegionOpen region = KVCACHED__REGION_OPEN__INIT;
    uint32_t page_extents[] = {1};
    struct message message;
    char name[32];

    snprintf(name, sizeof(name), "crowd-%u", number);
    hello.min_version = hello.max_version = FRAME_VERSION;
    hello.role = KVCACHED__ROLE__ROLE_ENGINE;
    hello.instance = name;
    tell(link, MESSAGE_HELLO, 1, &hello.base);
    hear(link, MESSAGE_WELCOME, &message);
    message_deinit(&message);
    region.segments = 1;
    region.capacity_pages = 1 << 20;
    region.n_page_extents = 1;
    region.page_extents = page_extents;
    tell(link, MESSAGE_REGION_OPEN, 2, &region.base);
    hear(link, MESSAGE_REGION_OPENED, &message);
    message_deinit(&message);
}

static void take(struct link *link, unsigned extents)
{
    Kvcached__GrantAck ack = KVCACHED__GRANT_ACK__INIT;
    Kvcached__Take body = KVCACHED__TAKE__INIT;
    struct message message;
    uint64_t remaining;

    body.region = 1;
    body.pages = extents;
    tell(link, MESSAGE_TAKE, 3, &body.base);
    do {
        hear(link, MESSAGE_GRANT, &message);
        remaining = ((const Kvcached__Grant *)message.body)->remaining;
        message_deinit(&message);
        tell(link, MESSAGE_GRANT_ACK, 3, &ack.base);
    } while (remaining > 0);
}

static void gather(struct bench *bench, const struct arguments *arguments)
{
    for (unsigned i = 0; i < arguments->peers; i++) {
        bench->crowd[i] = connect_to(arguments->many);
        join(bench->crowd[i], i);
        take(bench->crowd[i], arguments->extents / arguments->peers);
    }
}

static void disperse(struct bench *bench, unsigned peers)
{
    for (unsigned i = 0; i < peers; i++)
        bench->crowd[i] = link_free(bench->crowd[i]);
}

/* ---- The clients ---- */

static uint64_t map_and_unmap(const struct side *side)
{
    uint64_t start = now_ns(), ns;

    side->map(side->state, 1);
    ns = now_ns() - start;
    side->unmap(side->state, 1);
    return ns;
}

static void be_client(int socket, const char *path, int processor)
{
    struct broker_side *broker;
    struct side side;
    uint64_t ns;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin_to(processor);
    broker = broker_side_new(path);
    side = broker_side(broker);
    while (recv(socket, &ns, sizeof(ns), 0) == sizeof(ns)) {
        ns = map_and_unmap(&side);
        if (send(socket, &ns, sizeof(ns), MSG_NOSIGNAL) != sizeof(ns))
            break;
    }
    broker_side_free(broker);
}

static struct client client_new(const char *path, int processor)
{
    struct client client;
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        die("socketpair: %s", strerror(errno));
    client.pid = fork();
    if (client.pid < 0)
        die("fork: %s", strerror(errno));
    if (client.pid == 0) {
        close(sockets[0]);
        be_client(sockets[1], path, processor);
        exit(0);
    }
    close(sockets[1]);
    client.socket = sockets[0];
    return client;
}

static void client_end(struct client *client)
{
    int status;

    control_free(client->control);
    shutdown(client->socket, SHUT_RDWR); /* the other client has a copy */
    close(client->socket);
    if (waitpid(client->pid, &status, 0) != client->pid || status != 0)
        die("a client failed");
}

static uint64_t measure(struct client *client)
{
    uint64_t ns = 0;

    wait_for_rest(client->control, 200 * NSEC_PER_USEC);
    if (send(client->socket, &ns, sizeof(ns), MSG_NOSIGNAL) != sizeof(ns) ||
        recv(client->socket, &ns, sizeof(ns), 0) != sizeof(ns))
        die("a client has ended");
    return ns;
}

/* ---- Measuring ---- */

static void run(struct bench *bench, unsigned rounds)
{
    uint64_t *samples = calloc(2 * rounds, sizeof(*samples));

    if (!samples)
        die("out of memory");
    for (unsigned i = 0; i < 20; i++)
        measure(i % 2 ? &bench->few : &bench->many);
    for (unsigned i = 0; i < rounds; i++)
        for (unsigned turn = 0; turn < 2; turn++) {
            unsigned side = (i + turn) % 2;

            samples[2 * i + side] = measure(side ? &bench->many : &bench->few);
        }
    for (unsigned i = 0; i < rounds; i++)
        printf("few %" PRIu64 "\nmany %" PRIu64 "\n", samples[2 * i], samples[2 * i + 1]);
    free(samples);
}

static void run_again(struct bench *bench, unsigned rounds, const char *name)
{
    for (unsigned i = 0; i < rounds; i++)
        printf("%s %" PRIu64 "\n", name, measure(&bench->many));
}

static struct arguments parse(int argc, char **argv)
{
    struct arguments arguments = {.peers = 1000, .extents = 100000, .rounds = 1};
    const struct bench_option options[] = {
        {"few", .text = &arguments.few},
        {"many", .text = &arguments.many},
        {"peers", .number = &arguments.peers, .max = PEERS_MAX},
        {"extents", .number = &arguments.extents, .max = 10000000},
        {"rounds", .number = &arguments.rounds, .max = ROUNDS_MAX},
        {"processor", .processor = &arguments.processor},
        {0},
    };

    parse_options(argc, argv, options);
    if (!arguments.few || !arguments.many || arguments.peers == 0)
        die("--few, --many and at least one peer are needed");
    return arguments;
}

int main(int argc, char **argv)
{
    struct arguments arguments = parse(argc, argv);
    struct bench *bench = calloc(1, sizeof(*bench));
    char name[16];

    if (!bench)
        die("out of memory");
    bench->few = client_new(arguments.few, arguments.processor);
    bench->many = client_new(arguments.many, arguments.processor);
    pin_to(arguments.processor);
    bench->few.control = open_control(arguments.few);
    bench->many.control = open_control(arguments.many);
    gather(bench, &arguments);
    run(bench, arguments.rounds);
    puts("ready");
    end_output();
    while (scanf("%15s", name) == 1) {
        run_again(bench, arguments.rounds, name);
        puts("ready");
        end_output();
    }
    disperse(bench, arguments.peers);
    client_end(&bench->few);
    client_end(&bench->many);
    free(bench);
    return 0;
}
