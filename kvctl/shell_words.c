/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The grammar of a line, small enough to be learnt from one example: what a system shell's users expect of
 * quotes, and nothing of variables, patterns or pipes.
 */

#include "shell_words.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Reads the word at *from to *to, which may be the same place; false: a quote is not closed. */
static bool read_word(char **from, char **to)
{
    char quote = 0, *in = *from, *out = *to;

    for (; *in && (quote || !is_blank(*in)); in++) {
        if (quote ? *in == quote : *in == '"' || *in == '\'')
            quote = quote ? 0 : *in;
        else if (*in == '\\' && quote != '\'' && in[1])
            *out++ = *++in;
        else
            *out++ = *in;
    }
    *from = in;
    *to = out;
    return quote == 0;
}

int shell_words_split(char *line, char *ret_words[static SHELL_WORDS_MAX + 1], int *ret_n)
{
    char *from = line, *to = line;
    int n = 0;

    for (;;) {
        while (is_blank(*from))
            from++;
        if (*from == '\0' || *from == '#')
            break;
        if (n == SHELL_WORDS_MAX)
            return SHELL_WORDS_E_MANY;
        ret_words[n++] = to;
        if (!read_word(&from, &to))
            return SHELL_WORDS_E_QUOTE;
        if (*from)
            from++;
        *to++ = '\0';
    }
    ret_words[n] = NULL;
    *ret_n = n;
    return 0;
}

int shell_words_match(const char *word, const char *const *candidates, int *ret_common)
{
    size_t length = strlen(word), common = 0;
    const char *first = NULL;
    int n = 0;

    for (; *candidates; candidates++) {
        size_t same = length;

        if (strncmp(*candidates, word, length) != 0)
            continue;
        n++;
        if (!first) {
            first = *candidates;
            common = strlen(first);
            continue;
        }
        while (same < common && (*candidates)[same] == first[same])
            same++;
        common = same;
    }
    *ret_common = (int)common;
    return n;
}
