/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A look is a request for the instances, before it, where that is wanted, one about the GPU, and before that,
 * where the daemon was lost, the connection. Each step sends something and leaves; the next one takes what
 * has come. A daemon that is silent for too long is lost, and connected to anew with the next look.
 */

#include "source.h"

#include <limits.h>

#include "base/arith.h"

static int begin_list(struct source *source)
{
    source->phase = SOURCE_LISTING;
    return control_list_begin(source->member->control, source->names, source->n_names);
}

/* Of a daemon that we are connected to. */
static int begin_asking(struct source *source)
{
    if (!source->wants_info)
        return begin_list(source);
    source->phase = SOURCE_ASKING;
    return control_info_begin(source->member->control, NULL);
}

static int begin(struct source *source)
{
    struct fleet_member *member = source->member;

    if (member->r && member->r != CONTROL_E_PENDING)
        fleet_member_begin(member, SOURCE_PATIENCE_MS);
    if (member->r == 0)
        return begin_asking(source);
    source->phase = SOURCE_CONNECTING;
    return member->r == CONTROL_E_PENDING ? 0 : member->r;
}

static int step(struct source *source)
{
    struct fleet_member *member = source->member;
    int r;

    switch (source->phase) {
    case SOURCE_RESTING:
        return begin(source);
    case SOURCE_CONNECTING:
        fleet_member_end(member);
        return member->r ?: begin_asking(source);
    case SOURCE_ASKING:
        r = control_info_end(member->control, &source->info);
        return r ?: begin_list(source);
    case SOURCE_LISTING:
        break;
    }
    return control_list_end(member->control, source->names, source->n_names, &source->listing);
}

static bool is_loss(const struct source *source, int r)
{
    return r != CONTROL_E_REFUSED ||
           control_refusal(source->member->control) != KVCACHED__ERROR__ERROR_NOT_FOUND;
}

int source_turn(struct source *source, uint64_t now_ns)
{
    bool is_last;
    int r;

    if (source->phase == SOURCE_RESTING && now_ns < source->next_ns)
        return CONTROL_E_PENDING;
    if (source->phase == SOURCE_RESTING)
        source->next_ns = now_ns;
    do {
        is_last = source->phase == SOURCE_LISTING;
        r = step(source);
    } while (r == 0 && !is_last);
    if (r && r != CONTROL_E_PENDING && is_loss(source, r))
        source->member->r = r;
    return r;
}

void source_rest(struct source *source, uint64_t period_ns)
{
    message_deinit(&source->info);
    control_listing_deinit(&source->listing);
    source->phase = SOURCE_RESTING;
    source->next_ns += period_ns;
}

int source_wait(const struct source *source, uint64_t now_ns, struct pollfd *ret_pollfd)
{
    const struct control *control = source->member->control;

    *ret_pollfd = (struct pollfd){.fd = -1};
    if (source->phase == SOURCE_RESTING)
        return (int)u64_min(u64_sub_floor(source->next_ns, now_ns) / NSEC_PER_MSEC + 1, INT_MAX);
    *ret_pollfd = (struct pollfd){.fd = control_fd(control), .events = control_poll_events(control)};
    return control_patience_ms(control);
}
