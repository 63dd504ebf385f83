/* SPDX-License-Identifier: Apache-2.0 */

/* The thread that answers, between clients and a loop that are the test's own. */

#include "http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "stateworld.h"
#include "test.h"

#define ANSWER_MAX (256 * 1024)

struct world {
    uv_loop_t loop;
    struct sockaddr_in address;
    struct state_share *share;
    struct http_server *server;
    unsigned n_taken;
    int take_fails_with;
    uint64_t driver_busy_ns;
    bool draining;
};

static int take(void *userdata, struct state **ret)
{
    struct world *world = userdata;

    world->n_taken++;
    if (world->take_fails_with < 0)
        return world->take_fails_with;
    *ret = stateworld_new(1);
    (*ret)->driver.busy_ns = world->driver_busy_ns;
    (*ret)->draining = world->draining;
    return 0;
}

static void world_init(struct world *world)
{
    socklen_t length = sizeof(world->address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    *world = (struct world){.address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
    check_eq(bind(fd, (struct sockaddr *)&world->address, length), 0);
    check_eq(listen(fd, 64), 0);
    check_eq(getsockname(fd, (struct sockaddr *)&world->address, &length), 0);
    check_eq(uv_loop_init(&world->loop), 0);
    check_eq(state_share_new(&world->loop, take, world, &world->share), 0);
    check_eq(http_server_new(fd, true, world->share, &world->server), 0);
}

static void world_deinit(struct world *world)
{
    world->server = http_server_free(world->server);
    world->share = state_share_free(world->share);
    uv_run(&world->loop, UV_RUN_DEFAULT);
    check_eq(uv_loop_close(&world->loop), 0);
    uv_library_shutdown();
}

static int ask(const struct world *world, const char *path)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char request[256];
    int n = snprintf(request, sizeof(request),
                     "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path);

    check_eq(connect(fd, (const struct sockaddr *)&world->address, sizeof(world->address)), 0);
    check_eq(write(fd, request, (size_t)n), n);
    return fd;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    uv_stop(poll->loop);
}

/* The loop runs until there is something to read. */
static void run_until_readable(struct world *world, int fd)
{
    uv_poll_t poll;

    check_eq(uv_poll_init(&world->loop, &poll, fd), 0);
    check_eq(uv_poll_start(&poll, UV_READABLE, on_readable), 0);
    uv_run(&world->loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&poll, NULL);
    uv_run(&world->loop, UV_RUN_NOWAIT);
}

/* The whole answer, to the end of the connection; its status. */
static int read_answer(int fd, char ret[static ANSWER_MAX])
{
    size_t length = 0;
    int status = 0;
    ssize_t n;

    while ((n = read(fd, ret + length, ANSWER_MAX - 1 - length)) > 0 || (n < 0 && errno == EAGAIN))
        length += n > 0 ? (size_t)n : 0;
    close(fd);
    ret[length] = '\0';
    check_eq(sscanf(ret, "HTTP/1.1 %d", &status), 1);
    return status;
}

static int get(struct world *world, const char *path, char ret[static ANSWER_MAX])
{
    int fd = ask(world, path);

    run_until_readable(world, fd);
    return read_answer(fd, ret);
}

static void check_text(const char *answer, const char *text)
{
    const char *body = strstr(answer, "\r\n\r\n");

    check(body != NULL);
    check_str(body + 4, text);
}

TEST(answers)
{
    static char answer[ANSWER_MAX];
    struct world world;

    world_init(&world);
    check_eq(get(&world, "/metrics", answer), 200);
    check(strstr(answer, "\nkvcached_build_info{version=\"1.2.3\"} 1\n"));
    check_eq(get(&world, "/healthz", answer), 200);
    check_text(answer, "ok\n");
    check_eq(get(&world, "/nothing", answer), 404);
    world_deinit(&world);
}

/* However many ask at once: they share what the loop was asked for. */
TEST(a_storm_costs_one_state)
{
    static char answer[ANSWER_MAX];
    int fds[HTTP_CLIENTS_MAX];
    struct world world;

    world_init(&world);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = ask(&world, i % 2 ? "/metrics" : "/api/v1/state");
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        run_until_readable(&world, fds[i]);
        check_eq(read_answer(fds[i], answer), 200);
    }
    check(world.n_taken >= 1);
    check(world.n_taken <= ARRAY_SIZE(fds) / 4); /* one, unless this machine takes long over it */
    world_deinit(&world);
}

TEST(a_loop_that_does_not_answer)
{
    static char answer[ANSWER_MAX];
    struct world world;
    int a, b;

    world_init(&world);
    a = ask(&world, "/healthz");
    b = ask(&world, "/metrics");
    check_eq(read_answer(a, answer), 503);
    check_text(answer, "The daemon's loop doesn't answer.\n");
    check_eq(read_answer(b, answer), 503);
    check_eq(world.n_taken, 0);
    a = ask(&world, "/page.css"); /* needs no state */
    check_eq(read_answer(a, answer), 200);
    check_eq(get(&world, "/healthz", answer), 200);
    world_deinit(&world);
}

TEST(no_memory_for_a_state)
{
    static char answer[ANSWER_MAX];
    struct world world;

    world_init(&world);
    world.take_fails_with = -ENOMEM;
    check_eq(get(&world, "/metrics", answer), 503);
    check_text(answer, "The daemon is out of memory.\n");
    world.take_fails_with = 0;
    check_eq(get(&world, "/metrics", answer), 200);
    world_deinit(&world);
}

TEST(ready)
{
    static char answer[ANSWER_MAX];
    struct world world;

    world_init(&world);
    world.driver_busy_ns = 4 * NSEC_PER_SEC;
    check_eq(get(&world, "/readyz", answer), 200);
    check_text(answer, "ready\n");
    world_deinit(&world);
}

TEST(not_ready_while_the_driver_hangs)
{
    static char answer[ANSWER_MAX];
    struct world world;

    world_init(&world);
    world.driver_busy_ns = 6 * NSEC_PER_SEC;
    check_eq(get(&world, "/readyz", answer), 503);
    check_text(answer, "A call to the driver has not returned for more than five seconds.\n");
    check_eq(get(&world, "/healthz", answer), 200);
    world_deinit(&world);
}

TEST(not_ready_while_it_stops)
{
    static char answer[ANSWER_MAX];
    struct world world;

    world_init(&world);
    world.draining = true;
    check_eq(get(&world, "/readyz", answer), 503);
    check_text(answer, "The daemon is stopping.\n");
    world_deinit(&world);
}

/* Connections that wait for a state, that have said half of what they want, or nothing, end with it. */
TEST(ends_with_everything_open)
{
    char byte;
    int fds[3];
    struct world world;

    world_init(&world);
    fds[0] = ask(&world, "/metrics");
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check_eq(connect(fds[1], (struct sockaddr *)&world.address, sizeof(world.address)), 0);
    fds[2] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check_eq(connect(fds[2], (struct sockaddr *)&world.address, sizeof(world.address)), 0);
    check_eq(write(fds[2], "GET /met", 8), 8);
    world_deinit(&world);
    for (size_t i = 1; i < ARRAY_SIZE(fds); i++)
        check(read(fds[i], &byte, 1) <= 0);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

/* A state that comes after everybody has stopped waiting, or that nobody collects, is not lost. */
TEST(a_state_that_comes_too_late)
{
    static char answer[ANSWER_MAX];
    struct world world;
    int fd;

    world_init(&world);
    fd = ask(&world, "/metrics");
    check_eq(read_answer(fd, answer), 503);
    world.server = http_server_free(world.server);
    uv_run(&world.loop, UV_RUN_NOWAIT);
    check_eq(world.n_taken, 1);
    world_deinit(&world);
}
