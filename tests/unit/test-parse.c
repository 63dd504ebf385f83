/* SPDX-License-Identifier: Apache-2.0 */
#include "base/parse.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

static void expect_size(const char *text, uint64_t bytes)
{
    uint64_t value = 0;

    if (parse_size(text, &value) != 0 || value != bytes)
        test_fail(__FILE__, __LINE__, "\"%s\" gave %" PRIu64, text, value);
}

static void expect_no_size(const char *text, int error)
{
    uint64_t value = 42;

    if (parse_size(text, &value) != error || value != 42)
        test_fail(__FILE__, __LINE__, "\"%s\" gave %" PRIu64, text, value);
}

TEST(sizes)
{
    expect_size("0", 0);
    expect_size("1024", 1024);
    expect_size("512M", 512 * MIB);
    expect_size("512MB", 512 * MIB);
    expect_size("512mb", 512 * MIB);
    expect_size("2G", 2 * GIB);
    expect_size("2GB", 2 * GIB);
    expect_size("1T", 1024 * GIB);
    expect_size("1.5G", 3 * GIB / 2);
    expect_size("0.25k", 256);
    expect_size("18446744073709551615", UINT64_MAX);
    expect_size("17179869183G", UINT64_C(17179869183) * GIB);
}

TEST(sizes_refused)
{
    static const char *const bad[] = {"",    "G",   "-1",   "+1",  " 1",    "1 ",  "1 G", "1.",
                                      ".5G", "1e3", "0x10", "1GG", "1GiBB", "nan", "1,5G"};

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        expect_no_size(bad[i], -EINVAL);
    expect_no_size("18446744073709551616", -ERANGE);
    expect_no_size("16777216T", -ERANGE);
}

TEST(booleans)
{
    static const char *const yes[] = {"true", "TRUE", "1", "yes", "on", "On"};
    static const char *const no[] = {"false", "False", "0", "no", "off"};
    static const char *const bad[] = {"", "2", "y", "enable", "true "};
    bool value;

    for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
        check_eq(parse_bool(yes[i], &value), 0);
        check(value);
    }
    for (size_t i = 0; i < ARRAY_SIZE(no); i++) {
        check_eq(parse_bool(no[i], &value), 0);
        check(!value);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        check_eq(parse_bool(bad[i], &value), -EINVAL);
}

TEST(decimals)
{
    double value = 7;

    check_eq(parse_decimal("0.95", &value), 0);
    check(value > 0.9499999 && value < 0.9500001);
    check_eq(parse_decimal("1", &value), 0);
    check(value == 1);
    check_eq(parse_decimal("-1", &value), -EINVAL);
    check_eq(parse_decimal("inf", &value), -EINVAL);
    check_eq(parse_decimal("1e3", &value), -EINVAL);
    check(value == 1);
}

TEST(counts)
{
    uint64_t value = 7;

    check_eq(parse_u64("0", &value), 0);
    check_eq(value, 0);
    check_eq(parse_u64("18446744073709551615", &value), 0);
    check(value == UINT64_MAX);
    check_eq(parse_u64("18446744073709551616", &value), -ERANGE);
    check_eq(parse_u64("12x", &value), -EINVAL);
    check(value == UINT64_MAX);
}

TEST(sizes_for_people)
{
    char buf[FORMAT_SIZE_MAX];

    check_str(format_size(buf, 0), "0 B");
    check_str(format_size(buf, 1023), "1023 B");
    check_str(format_size(buf, 2 * MIB), "2.00 MB");
    check_str(format_size(buf, 8 * GIB), "8.00 GB");
    check_str(format_size(buf, UINT64_MAX), "16.00 EB");
}
