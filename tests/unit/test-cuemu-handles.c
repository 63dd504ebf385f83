/* SPDX-License-Identifier: Apache-2.0 */
#include "handles.h"

#include "test.h"

TEST(values_are_never_given_twice)
{
    struct handle_table table = {.salt = 0x1234567812345678};
    struct handle *a = handle_new(&table), *b;
    uint64_t old = a->value;

    check(handle_find(&table, old) == a);
    handle_free(&table, a);
    check(handle_find(&table, old) == NULL);
    b = handle_new(&table);
    check(b->value != old);
    check(handle_find(&table, old) == NULL);
    check(handle_find(&table, b->value) == b);
    check_eq(table.n_live, 1);
    handle_table_deinit(&table);
}

TEST(garbage_is_no_handle)
{
    struct handle_table table = {.salt = 42};

    check(handle_find(&table, 0) == NULL);
    check(handle_find(&table, UINT64_MAX) == NULL);
    for (unsigned i = 0; i < 1000; i++)
        check(handle_new(&table));
    check(handle_find(&table, 0) == NULL);
    check(handle_find(&table, 42) == NULL);
    check_eq(table.n_live, 1000);
    check(handle_free(&table, NULL) == NULL);
    handle_table_deinit(&table);
}

TEST(another_process_has_other_values)
{
    struct handle_table one = {.salt = 0x1111111111111111}, other = {.salt = 0x2222222222222222};
    struct handle *a = handle_new(&one);

    handle_new(&other);
    check(handle_find(&other, a->value) == NULL);
    handle_table_deinit(&one);
    handle_table_deinit(&other);
}
