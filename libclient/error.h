/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Errors: a KVC_E_* value that is returned, and one sentence for the thread that made the call.
 */

#include <stdbool.h>

#include "kvclient.h"

#define ERROR_SENTENCE_MAX 384

/* Keeps the sentence for kvc_last_error() and returns `error`. No newline, no full stop. */
int error_set(int error, const char *format, ...) __attribute__((cold, format(printf, 2, 3)));

/* Out of host memory, as everybody says it. */
int error_nomem(void) __attribute__((cold));

/* Whether a wait was in vain: what was asked may still be answered, or done. */
bool error_is_unanswered(int error);

/* Between the two the sentence stays as it is: what fails while a failure is undone must not hide why. They
 * nest. */
void error_hold(void);
void error_release(void);

/* What the thread has of all this, for code in between that has errors of its own. */
struct error_state {
    char sentence[ERROR_SENTENCE_MAX];
    unsigned holds;
};
void error_set_aside(struct error_state *ret);
void error_restore(const struct error_state *state);
