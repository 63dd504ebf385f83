/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A look is a request about the GPU and one for the instances, and before them, where the daemon was lost,
 * the connection. Each step sends something and leaves; the next one takes what has come. A daemon that is
 * silent for longer than kvtop's patience is lost, and connected to anew with the next look.
 */

#include "top_source.h"

#include <limits.h>

#include "base/arith.h"

static int begin(struct top_source *source)
{
    struct fleet_member *member = source->member;

    if (member->r && member->r != CONTROL_E_PENDING)
        fleet_member_begin(member, TOP_PATIENCE_MS);
    source->phase = member->r ? TOP_CONNECTING : TOP_ASKING;
    if (member->r == 0)
        return control_info_begin(member->control, NULL);
    return member->r == CONTROL_E_PENDING ? 0 : member->r;
}

static int step(struct top_source *source)
{
    struct fleet_member *member = source->member;
    int r = 0;

    switch (source->phase) {
    case TOP_RESTING:
        return begin(source);
    case TOP_CONNECTING:
        fleet_member_end(member);
        r = member->r;
        if (r == 0)
            r = control_info_begin(member->control, NULL);
        break;
    case TOP_ASKING:
        r = control_info_end(member->control, &source->info);
        if (r == 0)
            r = control_list_begin(member->control);
        break;
    case TOP_LISTING:
        return control_list_end(member->control, &source->listing);
    }
    if (r == 0)
        source->phase++;
    return r;
}

int top_source_turn(struct top_source *source, uint64_t now_ns)
{
    bool is_last;
    int r;

    if (source->phase == TOP_RESTING && now_ns < source->next_ns)
        return CONTROL_E_PENDING;
    if (source->phase == TOP_RESTING)
        source->next_ns = now_ns;
    do {
        is_last = source->phase == TOP_LISTING;
        r = step(source);
    } while (r == 0 && !is_last);
    if (r && r != CONTROL_E_PENDING)
        source->member->r = r;
    return r;
}

void top_source_rest(struct top_source *source, uint64_t period_ns)
{
    message_deinit(&source->info);
    control_listing_deinit(&source->listing);
    source->phase = TOP_RESTING;
    source->next_ns += period_ns;
}

int top_source_wait(const struct top_source *source, uint64_t now_ns, struct pollfd *ret_pollfd)
{
    const struct control *control = source->member->control;

    *ret_pollfd = (struct pollfd){.fd = -1};
    if (source->phase == TOP_RESTING)
        return (int)u64_min(u64_sub_floor(source->next_ns, now_ns) / NSEC_PER_MSEC + 1, INT_MAX);
    *ret_pollfd = (struct pollfd){.fd = control_fd(control), .events = control_poll_events(control)};
    return control_patience_ms(control);
}
