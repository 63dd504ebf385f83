/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The test runner. Each test is a function in a program of its own group; main() comes with the library:
 *
 *     TEST(take_from_empty_pool)
 *     {
 *         check_eq(pool_take(pool, 0), POOL_E_EMPTY);
 *     }
 *
 * Every test runs in its own process with a time limit. It fails when a check fails, when it dies or exceeds
 * the limit, when it leaves descriptors open that it did not find open, when it leaves handles or mappings of
 * the emulated driver, or when children outlive it. Output is TAP. Arguments: names of tests to run (default
 * all), --list, --no-fork (for debuggers).
 */

#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>

struct test {
    const char *name;
    void (*run)(void);
    unsigned limit_s;
} __attribute__((aligned(64)));

#define TEST_LIMIT(test_name, seconds)                                                                       \
    static void test_name(void);                                                                             \
    static const struct test test_##test_name __attribute__((section("kvtests"), used)) = {                  \
        .name = #test_name, .run = test_name, .limit_s = (seconds)};                                         \
    static void test_name(void)

#define TEST(test_name) TEST_LIMIT(test_name, 60)

_Noreturn void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends the test as skipped; the README states every reason for which that happens. */
_Noreturn void test_skip(const char *reason);

/*
 * A folder of this test's own, on a tmpfs and open to all users. It is made by the first call, and removed
 * after the test, however that ends.
 */
const char *test_folder(void);

/* Seed of this run's random tests: $KVCACHED_TEST_SEED or the time. It is printed to stderr. */
uint64_t test_seed(void);

/* How often a random test begins anew: $KVCACHED_TEST_ROUNDS or as usual. */
unsigned test_rounds(unsigned usual);

/* xorshift64*; state must not be 0. */
static inline uint64_t test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

#define check(expr)                                                                                          \
    do {                                                                                                     \
        if (!(expr))                                                                                         \
            test_fail(__FILE__, __LINE__, "%s", #expr);                                                      \
    } while (0)

#define check_eq(a, b)                                                                                       \
    do {                                                                                                     \
        int64_t check_a = (int64_t)(a), check_b = (int64_t)(b);                                              \
        if (check_a != check_b)                                                                              \
            test_fail(__FILE__, __LINE__, "%s == %s: %" PRId64 " is not %" PRId64, #a, #b, check_a,          \
                      check_b);                                                                              \
    } while (0)

#define check_str(a, b)                                                                                      \
    do {                                                                                                     \
        const char *check_a = (a), *check_b = (b);                                                           \
        if (!check_a || !check_b || strcmp(check_a, check_b) != 0)                                           \
            test_fail(__FILE__, __LINE__, "%s: \"%s\" is not \"%s\"", #a, check_a ? check_a : "(null)",      \
                      check_b ? check_b : "(null)");                                                         \
    } while (0)
