/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Editor: reads the shell's lines. On a terminal, where kvctl was built with libedit, with editing, a history
 * that is kept in a file, and completion; else as they come.
 */

#include "base/cleanup.h"

enum {
    _EDITOR_E_SUCCESS,
    EDITOR_E_END,         /* of the input */
    EDITOR_E_INTERRUPTED, /* by a signal */
};

/* Words that can complete what is being written: `words` are the ones before it. A NULL-terminated array that
 * lives until the next call. */
typedef const char *const *(*editor_candidates_fn)(char *const *words, int n_words);

struct editor;

/* 0 or -ENOMEM. `history` may be NULL. */
int editor_new(const char *prompt, const char *history, editor_candidates_fn candidates, struct editor **ret);
struct editor *editor_free(struct editor *editor); /* keeps the history */
DEFINE_CLEANUP(struct editor *, editor_free);

/* *ret_line is the caller's to free. 0, EDITOR_E_*, -ENOMEM, -errno. */
int editor_read(struct editor *editor, char **ret_line);
