/* SPDX-License-Identifier: Apache-2.0 */

/*
 * It owns what is left of the last report. It errs on the side of the one who promised: a refusal counts as
 * broken only while the report surely holds. Asking, and reading the clock, it leaves to its user.
 */

#include "promise.h"

#include "base/arith.h"

void promise_make(struct promise *p, uint64_t blocks, double now_s, double holds_s)
{
    *p = (struct promise){.blocks = blocks, .until_s = now_s + holds_s};
}

void promise_spend(struct promise *p, uint64_t blocks)
{
    p->blocks = u64_sub_floor(p->blocks, blocks);
}

bool promise_is_broken(const struct promise *p, uint64_t blocks, double now_s)
{
    return blocks <= p->blocks && now_s <= p->until_s;
}
