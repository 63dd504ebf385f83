/* SPDX-License-Identifier: Apache-2.0 */

/*
 * It is at rest when two looks find the same, and all that lies in the pool is warm: what is being exported
 * would be somebody else's time. A pool that is larger than the descriptor table never is; then many looks
 * have to do. (It has no other way to say so, and needs none but here.)
 */

#include "rest.h"

#include <stdbool.h>
#include <time.h>

#include "base/arith.h"
#include "bench.h"

#define LOOKS_MAX 100

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
    unsigned n_same = 0;

    for (;;) {
        if (pause_ns)
            nanosleep(&pause, NULL);
        state = ask_state(control);
        n_same = is_same(&state, &before) && state.creating_bytes == 0 ? n_same + 1 : 0;
        if (n_same > LOOKS_MAX || (n_same > 0 && state.warm_bytes == state.pool_bytes))
            return state.warm_bytes;
        if (now_ns() > deadline)
            die("the daemon doesn't come to rest");
        before = state;
    }
}
