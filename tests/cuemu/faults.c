/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Fault injection. A chance is decided by a hash of (seed, function, number of the call), not by a generator
 * with state, so that a failing run can be repeated although threads interleave differently.
 */

#include "faults.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "cuda/api.h"

#define DEFAULT_ERROR CUDA_ERROR_OUT_OF_MEMORY

static const struct {
    const char *name;
    int value;
} error_names[] = {
#define CUDA_RESULT(name, value, text) {#name, value},
#include "cuda/errors.def"
#undef CUDA_RESULT
};

static int parse_error(const char *text, int *ret_error)
{
    uint64_t number;

    if (parse_u64(text, &number) == 0 && number > 0 && number < 1000) {
        *ret_error = (int)number;
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(error_names); i++) {
        const char *name = error_names[i].name;

        if (strcmp(name, text) == 0 || strcmp(name + strlen("CUDA_"), text) == 0 ||
            (strlen(name) > strlen("CUDA_ERROR_") && strcmp(name + strlen("CUDA_ERROR_"), text) == 0)) {
            *ret_error = error_names[i].value;
            return error_names[i].value ? 0 : -EINVAL;
        }
    }
    return -EINVAL;
}

static int parse_range(char *text, struct fault_rule *rule)
{
    size_t length = strlen(text);
    char *dash = strchr(text, '-');

    if (length > 1 && text[length - 1] == '+') {
        text[length - 1] = '\0';
        rule->last = UINT64_MAX;
        return parse_u64(text, &rule->first);
    }
    if (dash) {
        *dash = '\0';
        if (parse_u64(dash + 1, &rule->last) < 0)
            return -EINVAL;
        return parse_u64(text, &rule->first);
    }
    if (parse_u64(text, &rule->first) < 0)
        return -EINVAL;
    rule->last = rule->first;
    return 0;
}

static int parse_when(char *text, struct fault_rule *rule)
{
    if (text[0] == 'p')
        return parse_decimal(text + 1, &rule->chance) < 0 || rule->chance > 1 ? -EINVAL : 0;
    if (parse_range(text, rule) < 0 || rule->first == 0 || rule->last < rule->first)
        return -EINVAL;
    return 0;
}

static char *cut(char *text, const char *separator)
{
    char *at = strstr(text, separator);

    if (!at)
        return NULL;
    *at = '\0';
    return at + strlen(separator);
}

static int parse_rule(char *text, struct fault_rule *ret_rule)
{
    char *seed = cut(text, "@seed="), *error = cut(text, "="), *when = cut(text, ":");
    struct fault_rule rule = {.error = DEFAULT_ERROR};

    if (!when || !*text || strlen(text) >= sizeof(rule.function))
        return -EINVAL;
    if (seed && parse_u64(seed, &rule.seed) < 0)
        return -EINVAL;
    if (error && parse_error(error, &rule.error) < 0)
        return -EINVAL;
    if (parse_when(when, &rule) < 0)
        return -EINVAL;
    strcpy(rule.function, text);
    *ret_rule = rule;
    return 0;
}

int faults_parse(const char *text, struct fault_plan *ret_plan, unsigned *ret_offset)
{
    struct fault_plan plan = {0};
    const char *at = text;

    while (*at) {
        size_t length = strcspn(at, ";");
        char rule[128];

        if (plan.n_rules == FAULT_RULES_MAX || length >= sizeof(rule)) {
            *ret_offset = (unsigned)(at - text);
            return -EINVAL;
        }
        memcpy(rule, at, length);
        rule[length] = '\0';
        if (parse_rule(rule, &plan.rules[plan.n_rules]) < 0) {
            *ret_offset = (unsigned)(at - text);
            return -EINVAL;
        }
        plan.n_rules++;
        at += length + (at[length] == ';');
    }
    *ret_plan = plan;
    return 0;
}

/* SplitMix64's finaliser. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static bool by_chance(const struct fault_rule *rule, const char *function, uint64_t nth)
{
    uint64_t hash = rule->seed + UINT64_C(0x9e3779b97f4a7c15);

    for (const char *p = function; *p; p++)
        hash = mix(hash ^ (unsigned char)*p);
    hash = mix(hash ^ nth);
    return (double)(hash >> 11) * 0x1p-53 < rule->chance;
}

/* "cu*" and "*" stand for many functions, whose calls count together. */
static bool strikes(const struct fault_rule *rule, const char *function, uint64_t nth, uint64_t nth_overall)
{
    size_t length = strlen(rule->function);
    bool many = rule->function[length - 1] == '*';

    if (many ? strncmp(rule->function, function, length - 1) != 0 : strcmp(rule->function, function) != 0)
        return false;
    if (rule->first == 0)
        return by_chance(rule, function, nth);
    if (many)
        nth = nth_overall;
    return nth >= rule->first && nth <= rule->last;
}

int faults_check(const struct fault_plan *plan, const char *function, uint64_t nth, uint64_t nth_overall)
{
    for (unsigned i = 0; i < plan->n_rules; i++)
        if (strikes(&plan->rules[i], function, nth, nth_overall))
            return plan->rules[i].error;
    return 0;
}
