/* SPDX-License-Identifier: Apache-2.0 */
#include "history.h"

#include <string.h>

#include "test.h"

static struct history history;
static struct history_sample copy[HISTORY_MAX];

static void note(uint64_t ms, uint64_t bytes)
{
    const struct history_sample sample = {.ns = ms * 1000000, .granted_bytes = bytes};

    history_note(&history, &sample);
}

TEST(a_sample_for_each_second_in_which_something_changed)
{
    note(500, 1);
    note(900, 1);
    note(1400, 2); /* of the same second: replaces */
    note(60000, 2);
    note(60001, 3);
    note(61000, 4); /* less than a second behind the last one */
    note(61001, 5);
    check_eq(history_copy(&history, copy), 3);
    check_eq(copy[0].ns, 500000000);
    check_eq(copy[0].granted_bytes, 2);
    check_eq(copy[1].ns, 60001000000);
    check_eq(copy[1].granted_bytes, 4);
    check_eq(copy[2].ns, 61001000000);
    check_eq(copy[2].granted_bytes, 5);
}

TEST(each_number_counts)
{
    struct history_sample sample = {.ns = 1};
    uint64_t *numbers[] = {&sample.granted_bytes, &sample.leased_bytes,  &sample.pool_bytes,
                           &sample.leaving_bytes, &sample.foreign_bytes, &sample.budget_bytes};

    history_note(&history, &sample);
    for (unsigned i = 0; i < 6; i++) {
        sample.ns += HISTORY_STEP_NS;
        *numbers[i] = 7;
        history_note(&history, &sample);
        check_eq(history.n, i + 2);
    }
}

TEST(the_newest_are_kept)
{
    for (unsigned i = 0; i < 2 * HISTORY_MAX + 3; i++)
        note(i * 1000, i + 1);
    check_eq(history_copy(&history, copy), HISTORY_MAX);
    for (unsigned i = 0; i < HISTORY_MAX; i++)
        check_eq(copy[i].granted_bytes, HISTORY_MAX + 3 + i + 1);
}
