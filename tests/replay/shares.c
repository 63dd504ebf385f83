/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Limits through the control socket, as kvctl sets them. A limit outlives its engine, so whoever sets one
 * here clears it afterwards: a replay leaves the daemon as it was.
 */

#include "shares.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "base/arith.h"
#include "control.h"

/* How long the daemon may take to see that a process is gone. */
#define GONE_WITHIN_MS 5000
#define GONE_POLL_MS 20

static int fail(const struct control *c, char error[static SHARES_ERROR_MAX])
{
    snprintf(error, SHARES_ERROR_MAX, "%s", control_reason(c));
    return -EIO;
}

static int open_control(const char *socket, struct control **ret, char error[static SHARES_ERROR_MAX])
{
    const struct control_options options = {.socket = socket};
    _cleanup_(control_freep) struct control *c = NULL;

    if (control_new(&c) < 0) {
        snprintf(error, SHARES_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    if (control_connect(c, &options) != 0)
        return fail(c, error);
    *ret = steal_pointer(c);
    return 0;
}

int shares_budget(const char *socket, uint64_t *ret_bytes, char error[static SHARES_ERROR_MAX])
{
    _cleanup_(control_freep) struct control *c = NULL;
    struct message reply = {};
    int r;

    r = open_control(socket, &c, error);
    if (r < 0)
        return r;
    if (control_info(c, NULL, &reply) != 0)
        return fail(c, error);
    *ret_bytes = ((const Kvcached__InfoReply *)reply.body)->budget_bytes;
    message_deinit(&reply);
    return 0;
}

int shares_set(const char *socket, struct board *board, uint64_t page_bytes,
               char error[static SHARES_ERROR_MAX])
{
    uint64_t bytes = board->budget_bytes / page_bytes / board->n * page_bytes;
    _cleanup_(control_freep) struct control *c = NULL;
    int r;

    r = open_control(socket, &c, error);
    if (r < 0)
        return r;
    for (size_t i = 0; i < board->n; i++) {
        struct message reply = {};

        if (control_set_limit_bytes(c, board->slots[i].instance, bytes, &reply) != 0)
            return fail(c, error);
        message_deinit(&reply);
    }
    board->share_bytes = bytes;
    return 0;
}

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)(ms * NSEC_PER_MSEC)}, NULL);
}

/* 0, an error that may pass, or one that stays. */
static int try_forget(struct control *c, const char *instance)
{
    struct message reply = {};
    int r;

    r = control_delete(c, instance, false, &reply);
    if (r == CONTROL_E_REFUSED && control_refusal(c) == KVCACHED__ERROR__ERROR_NOT_FOUND)
        return 0;
    if (r == CONTROL_E_REFUSED && control_refusal(c) == KVCACHED__ERROR__ERROR_BUSY)
        return -EAGAIN;
    if (r)
        return -EIO;
    message_deinit(&reply);
    return 0;
}

/* An instance stays busy until the daemon has seen its process or connection end, which nobody announces. */
static int forget(struct control *c, const char *instance, char error[static SHARES_ERROR_MAX])
{
    int r = try_forget(c, instance);

    for (unsigned waited = 0; r == -EAGAIN && waited < GONE_WITHIN_MS; waited += GONE_POLL_MS) {
        pause_ms(GONE_POLL_MS);
        r = try_forget(c, instance);
    }
    return r < 0 ? fail(c, error) : 0;
}

int shares_clear(const char *socket, const struct board *board, char error[static SHARES_ERROR_MAX])
{
    _cleanup_(control_freep) struct control *c = NULL;
    int r;

    r = open_control(socket, &c, error);
    for (size_t i = 0; i < board->n && r == 0; i++)
        r = forget(c, board->slots[i].instance, error);
    return r;
}
