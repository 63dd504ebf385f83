/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The words of one of kvpeer's commands. The readers return false for text that is not of their kind; a key
 * that is missing leaves the value as it is.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORDS_MAX 32

struct words {
    unsigned n;
    char *word[WORDS_MAX]; /* of the line; the first is the command */
};

/* Has each line of standard input run, and its answer written; until the end of input. */
void words_serve(void (*run)(const struct words *words));

/* The value of "KEY=value", or NULL. */
const char *words_value(const struct words *words, const char *key);

bool words_size(const struct words *words, const char *key, uint64_t *ret);
bool words_int(const struct words *words, const char *key, int *ret);

/* "8M,2M,2M"; at most `max`, none where the key is missing. */
bool words_sizes(const struct words *words, const char *key, uint64_t *sizes, size_t max, size_t *ret_n);

/* The i-th word as a number. */
bool words_number(const struct words *words, unsigned i, uint64_t *ret);

/* The name of a KVC_E_* value. */
const char *words_error(int error);

/* "0-15,20" as a list that the caller frees; NULL for anything else. */
uint64_t *words_pages(const char *text, size_t *ret_n);
