/* SPDX-License-Identifier: Apache-2.0 */

/*
 * It is at rest when two looks find the same, and all that lies in the pool is warm: what is being exported
 * would be somebody else's time. A pool that is larger than the descriptor table never is; then it has
 * to stay the same for a while. (It has no other way to say so, and needs none but here.)
 */

#include "rest.h"

#include <stdbool.h>
#include <time.h>

#include "base/arith.h"
#include "bench.h"

#define UNCHANGED_NS (20 * NSEC_PER_MSEC)

struct state {
    uint64_t pool_bytes, warm_bytes, creating_bytes, destroying_bytes;
};

struct control *open_control(const char *path)
{
    const struct control_options options = {.socket = path};
    struct control *control;

    if (control_new(&control) < 0)
        die("out of memory");
    if (control_connect(control, &options) != 0)
        die("%s", control_reason(control));
    return control;
}

static struct state ask_state(struct control *control)
{
    const Kvcached__InfoReply *info;
    struct message reply;
    struct state state;

    if (control_info(control, NULL, &reply) != 0)
        die("%s", control_reason(control));
    info = (const Kvcached__InfoReply *)reply.body;
    state = (struct state){info->pool_bytes, info->warm_bytes, info->creating_bytes, info->destroying_bytes};
    message_deinit(&reply);
    return state;
}

static bool is_same(const struct state *a, const struct state *b)
{
    return a->pool_bytes == b->pool_bytes && a->warm_bytes == b->warm_bytes &&
           a->creating_bytes == b->creating_bytes && a->destroying_bytes == b->destroying_bytes;
}

uint64_t wait_for_rest(struct control *control, uint64_t pause_ns)
{
    const struct timespec pause = {.tv_nsec = (long)pause_ns};
    uint64_t deadline = now_ns() + PATIENCE_NS;
    struct state before = ask_state(control), state;
    uint64_t changed_ns = now_ns();

    for (;;) {
        if (pause_ns)
            nanosleep(&pause, NULL);
        state = ask_state(control);
        if (!is_same(&state, &before) || state.creating_bytes > 0)
            changed_ns = now_ns();
        else if (state.warm_bytes == state.pool_bytes || now_ns() - changed_ns > UNCHANGED_NS)
            return state.warm_bytes;
        if (now_ns() > deadline)
            die("the daemon doesn't come to rest");
        before = state;
    }
}
