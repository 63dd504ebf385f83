/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Numbers as people write them. Digits are read by hand rather than by strtoull() and friends, because those
 * accept signs, blanks, hexadecimal, infinities and the locale's decimal point.
 */

#include "base/parse.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/arith.h"

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int parse_digits(const char **text, uint64_t *ret)
{
    const char *p = *text;
    uint64_t value = 0;

    if (!is_digit(*p))
        return -EINVAL;
    for (; is_digit(*p); p++)
        if (!u64_mul(value, 10, &value) || !u64_add(value, (uint64_t)(*p - '0'), &value))
            return -ERANGE;
    *text = p;
    *ret = value;
    return 0;
}

/* ".25" as a fraction of one; digits that a double cannot hold are read and dropped. */
static int parse_fraction(const char **text, double *ret)
{
    const char *p = *text;
    double value = 0, weight = 0.1;

    if (*p != '.') {
        *ret = 0;
        return 0;
    }
    if (!is_digit(*++p))
        return -EINVAL;
    for (; is_digit(*p); p++) {
        value += (*p - '0') * weight;
        weight /= 10;
    }
    *text = p;
    *ret = value;
    return 0;
}

static int parse_unit(const char *text, uint64_t *ret_bytes)
{
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {
        {"", 0},    {"B", 0},  {"K", 10},  {"KB", 10}, {"M", 20},
        {"MB", 20}, {"G", 30}, {"GB", 30}, {"T", 40},  {"TB", 40},
    };

    for (size_t i = 0; i < ARRAY_SIZE(units); i++)
        if (strcasecmp(text, units[i].name) == 0) {
            *ret_bytes = UINT64_C(1) << units[i].shift;
            return 0;
        }
    return -EINVAL;
}

int parse_size(const char *text, uint64_t *ret_bytes)
{
    uint64_t whole, unit, bytes;
    double fraction;
    int r;

    r = parse_digits(&text, &whole);
    if (r < 0)
        return r;
    r = parse_fraction(&text, &fraction);
    if (r < 0)
        return r;
    r = parse_unit(text, &unit);
    if (r < 0)
        return r;
    if (!u64_mul(whole, unit, &bytes) || !u64_add(bytes, (uint64_t)(fraction * (double)unit), &bytes))
        return -ERANGE;
    *ret_bytes = bytes;
    return 0;
}

int parse_u64(const char *text, uint64_t *ret)
{
    uint64_t value;
    int r;

    r = parse_digits(&text, &value);
    if (r < 0)
        return r;
    if (*text)
        return -EINVAL;
    *ret = value;
    return 0;
}

int parse_decimal(const char *text, double *ret)
{
    uint64_t whole;
    double fraction;
    int r;

    r = parse_digits(&text, &whole);
    if (r < 0)
        return r;
    r = parse_fraction(&text, &fraction);
    if (r < 0)
        return r;
    if (*text)
        return -EINVAL;
    *ret = (double)whole + fraction;
    return 0;
}

int parse_bool(const char *text, bool *ret)
{
    static const struct {
        const char *name;
        bool value;
    } names[] = {
        {"true", true},   {"1", true},  {"yes", true}, {"on", true},
        {"false", false}, {"0", false}, {"no", false}, {"off", false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcasecmp(text, names[i].name) == 0) {
            *ret = names[i].value;
            return 0;
        }
    return -EINVAL;
}

const char *format_size(char buf[static FORMAT_SIZE_MAX], uint64_t bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
        value /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(buf, FORMAT_SIZE_MAX, "%u B", (unsigned)bytes);
    else
        snprintf(buf, FORMAT_SIZE_MAX, "%.2f %s", value, units[unit]);
    return buf;
}
