/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which calls are to fail. Pure: the same plan and the same order of calls give the same failures.
 *
 *     plan  := rule { ";" rule }
 *     rule  := function ":" when [ "=" error ] [ "@seed=" number ]
 *     when  := N | N "-" M | N "+" | "p" chance          calls are counted from 1, per process
 *
 * `function` is an entry point without version suffix; "*" stands for all of them, "cu*" for the driver's and
 * "nvml*" for the management library's, and N counts all calls of the library then. `error` is a number or a
 * name of errors.def, with or without "CUDA_ERROR_"; out of memory where it is left out.
 */

#include <stdbool.h>
#include <stdint.h>

#define FAULT_RULES_MAX 64
#define FAULT_FUNCTION_MAX 48

struct fault_rule {
    char function[FAULT_FUNCTION_MAX];
    uint64_t first, last; /* 0, 0 where it is by chance */
    double chance;
    uint64_t seed;
    int error;
};

struct fault_plan {
    unsigned n_rules;
    struct fault_rule rules[FAULT_RULES_MAX];
};

/* 0, or -EINVAL with the offset of the bad rule in *ret_offset. */
int faults_parse(const char *text, struct fault_plan *ret_plan, unsigned *ret_offset);

/* The error that this call shall give, or 0. */
int faults_check(const struct fault_plan *plan, const char *function, uint64_t nth, uint64_t nth_overall);
