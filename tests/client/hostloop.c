/* SPDX-License-Identifier: Apache-2.0 */
#include "hostloop.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "support.h"

static void *run_loop(void *data)
{
    struct event_loop *loop = data;
    struct pollfd pfds[2] = {{.fd = kvc_get_fd(loop->client)}, {.fd = loop->end[0], .events = POLLIN}};

    while (!(pfds[1].revents & POLLIN)) {
        pfds[0].events = (short)kvc_get_events(loop->client);
        check(poll(pfds, 2, kvc_get_timeout(loop->client)) >= 0);
        check_ok(kvc_dispatch(loop->client));
    }
    return NULL;
}

void start_loop(struct event_loop *loop, struct kvc_client *client)
{
    loop->client = client;
    check_eq(pipe2(loop->end, O_CLOEXEC), 0);
    check_eq(pthread_create(&loop->thread, NULL, run_loop, loop), 0);
}

void end_loop(struct event_loop *loop)
{
    check_eq(write(loop->end[1], "", 1), 1);
    check_eq(pthread_join(loop->thread, NULL), 0);
    close(loop->end[0]);
    close(loop->end[1]);
}
