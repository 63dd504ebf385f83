/* SPDX-License-Identifier: Apache-2.0 */
#include "promise.h"

#include "test.h"

static struct promise of_ten(void)
{
    struct promise p;

    promise_make(&p, 10, 5, 0.25);
    return p;
}

TEST(what_was_promised_may_not_be_refused)
{
    struct promise p = of_ten();

    check(promise_is_broken(&p, 10, 5.125));
    check(promise_is_broken(&p, 1, 5.25));
}

TEST(more_than_was_promised_may_be_refused)
{
    struct promise p = of_ten();

    check(!promise_is_broken(&p, 11, 5.125));
}

TEST(a_promise_runs_out)
{
    struct promise p = of_ten();

    check(!promise_is_broken(&p, 1, 5.5));
}

TEST(what_was_granted_is_taken_off)
{
    struct promise p = of_ten();

    promise_spend(&p, 4);
    check(promise_is_broken(&p, 6, 5.125));
    check(!promise_is_broken(&p, 7, 5.125));
    promise_spend(&p, 7);
    check(!promise_is_broken(&p, 1, 5.125));
}

TEST(the_last_report_counts)
{
    struct promise p = of_ten();

    promise_make(&p, 2, 6, 0.25);
    check(promise_is_broken(&p, 2, 6.125));
    check(!promise_is_broken(&p, 3, 6.125));
}

TEST(nothing_is_promised_at_first)
{
    struct promise p = {};

    check(!promise_is_broken(&p, 1, 5));
}
