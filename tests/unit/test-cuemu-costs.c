/* SPDX-License-Identifier: Apache-2.0 */
#include "costs.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

static struct cost_table table_of(const char *text)
{
    struct cost_table table;
    unsigned line = 0;

    if (costs_parse(text, &table, &line) != 0)
        test_fail(__FILE__, __LINE__, "line %u is refused of:\n%s", line, text);
    return table;
}

TEST(a100)
{
    struct cost_table table = table_of(costs_builtin("a100"));

    check_eq(costs_of(&table, COST_CREATE, 2 * MIB), 193000);
    check_eq(costs_of(&table, COST_MAP, 2 * MIB), 1450);
    check_eq(costs_of(&table, COST_ACCESS, 2 * MIB), 36000);
    check_eq(costs_of(&table, COST_UNMAP, 2 * MIB), 25600);
    check_eq(costs_of(&table, COST_RELEASE, 2 * MIB), 23000);
    check_eq(costs_of(&table, COST_IMPORT, 2 * MIB), 20000);
    check_eq(costs_of(&table, COST_IMPORT, 128 * MIB), 20000);
    check_eq(costs_of(&table, COST_EXPORT, 2 * MIB), 0);
    /* One handle of 64 costs a third of 64 handles. */
    check_eq(costs_of(&table, COST_ACCESS, 128 * MIB), 64 * 13200);
    check_eq(costs_of(&table, COST_ACCESS, 2 * GIB), 1024 * 12500);
}

TEST(none_costs_nothing)
{
    struct cost_table table = table_of(costs_builtin("none"));

    for (int i = 0; i < COST_N; i++)
        check_eq(costs_of(&table, i, GIB), 0);
    check(costs_builtin("h9000") == NULL);
    table_of(costs_builtin("gb10"));
}

TEST(shares_lie_on_lines)
{
    struct cost_table table = table_of("cuMemCreate call:5 2:10 8:30 # comment\n\n# nothing\n");

    check_eq(costs_of(&table, COST_CREATE, 2 * MIB), 5000 + 10000);
    check_eq(costs_of(&table, COST_CREATE, 4 * MIB), 5000 + 2 * 10000);
    check_eq(costs_of(&table, COST_CREATE, 8 * MIB), 5000 + 4 * 20000);
    check_eq(costs_of(&table, COST_CREATE, 16 * MIB), 5000 + 8 * 30000);
    check_eq(costs_of(&table, COST_CREATE, 32 * MIB), 5000 + 16 * 30000);
    check_eq(costs_of(&table, COST_CREATE, MIB), 5000 + 5000);
    check_eq(costs_of(&table, COST_CREATE, 0), 5000);
}

static void expect_bad_line(const char *text, unsigned want)
{
    struct cost_table table;
    unsigned line = 0;

    memset(&table, 7, sizeof(table));
    if (costs_parse(text, &table, &line) != -EINVAL || line != want)
        test_fail(__FILE__, __LINE__, "line %u, not %u, is refused of: %s", line, want, text);
    check_eq(((unsigned char *)&table)[0], 7);
}

TEST(bad_lines)
{
    expect_bad_line("cuMemCreat 1:2\n", 1);
    expect_bad_line("cuMemCreate 1:2\ncuMemMap call\n", 2);
    expect_bad_line("cuMemMap call:x", 1);
    expect_bad_line("cuMemMap 8:1 2:1", 1);
    expect_bad_line("cuMemMap 0:1", 1);
    expect_bad_line("cuMemMap 1:1 2:1 3:1 4:1 5:1 6:1 7:1 8:1 9:1", 1);
}
