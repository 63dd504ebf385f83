/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A signal may come just before the system call that it should end, so waits don't rely on EINTR: they ask
 * every so often. The time runs on over the waits that follow each other in a call, however short each is.
 *
 * A call may wait several times, also to undo what it has done. So once the answer was yes, each later wait
 * asks at its beginning; it is for the host to stay with its answer until the call has returned.
 */

#include "interrupt.h"

#include "base/arith.h"
#include "conn.h"

#define ASK_EVERY_NS (100 * NSEC_PER_MSEC)

static _Thread_local struct {
    const struct interrupt *own; /* NULL: the thread is the host's */
    uint64_t due_ns;
    bool wanted; /* said the last answer */
} here;

static const struct interrupt *asked(const struct interrupt *given)
{
    return here.own ? here.own : given;
}

uint64_t interrupt_due_ns(const struct interrupt *interrupt)
{
    uint64_t now_ns;

    if (!asked(interrupt)->is_wanted)
        return UINT64_MAX;
    now_ns = conn_now_ns();
    /* Long overdue, it was of a call that has ended. */
    if (!here.wanted && now_ns >= u64_add_ceil(here.due_ns, ASK_EVERY_NS))
        here.due_ns = now_ns + ASK_EVERY_NS;
    return here.due_ns;
}

int interrupt_ask(const struct interrupt *interrupt)
{
    struct error_state errors;
    bool wanted;

    error_set_aside(&errors);
    wanted = asked(interrupt)->is_wanted(asked(interrupt)->data) != 0;
    error_restore(&errors);
    here.wanted = wanted;
    here.due_ns = wanted ? 0 : conn_now_ns() + ASK_EVERY_NS;
    return wanted ? error_set(KVC_E_INTERRUPTED, "The call was interrupted") : 0;
}

void interrupt_replace(const struct interrupt *interrupt)
{
    here.own = interrupt;
}
