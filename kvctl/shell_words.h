/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Shell words: a line of the shell as arguments. Pure.
 *
 * Blanks separate; "double" and 'single' quotes keep them; a backslash keeps the next character, but for
 * inside of single quotes; # at the beginning of a word begins a comment.
 */

#define SHELL_WORDS_MAX 256

enum {
    _SHELL_WORDS_E_SUCCESS,
    SHELL_WORDS_E_QUOTE, /* one is not closed */
    SHELL_WORDS_E_MANY,  /* more than SHELL_WORDS_MAX */
};

/* Takes the line apart in place; the words point into it. */
int shell_words_split(char *line, char *ret_words[static SHELL_WORDS_MAX + 1], int *ret_n);

/* Of `candidates` (NULL at the end) those that begin with `word`: how many, and how many characters they
 * have in common. */
int shell_words_match(const char *word, const char *const *candidates, int *ret_common);
