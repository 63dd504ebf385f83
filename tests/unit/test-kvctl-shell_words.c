/* SPDX-License-Identifier: Apache-2.0 */
#include "shell_words.h"

#include <stdio.h>
#include <string.h>

#include "test.h"

/* The words, each in brackets, or the error's number. */
static const char *split(const char *line)
{
    static char text[4096], copy[4096];
    char *words[SHELL_WORDS_MAX + 1];
    size_t used = 0;
    int n, r;

    strcpy(copy, line);
    text[0] = '\0';
    r = shell_words_split(copy, words, &n);
    if (r)
        snprintf(text, sizeof(text), "%d", r);
    for (int i = 0; r == 0 && i < n; i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "[%s]", words[i]);
    if (r == 0)
        check(!words[n]);
    return text;
}

TEST(blanks_separate)
{
    check_str(split(""), "");
    check_str(split(" \t\r\n"), "");
    check_str(split("list"), "[list]");
    check_str(split("  limit  a\t8G \n"), "[limit][a][8G]");
}

TEST(quotes_keep)
{
    check_str(split("a \"b c\" d"), "[a][b c][d]");
    check_str(split("'b \"c' x\"y z\"w"), "[b \"c][xy zw]");
    check_str(split("'' \"\""), "[][]");
    check_str(split("a\\ b \\\" '\\'"), "[a b][\"][\\]");
    check_str(split("\"\\\"\""), "[\"]");
    check_str(split("end\\"), "[end\\]");
    check_str(split("a 'b"), "1");
    check_str(split("\"b"), "1");
}

TEST(comments)
{
    check_str(split("# all of it"), "");
    check_str(split("a # b"), "[a]");
    check_str(split("a#b '#'"), "[a#b][#]");
}

TEST(too_many)
{
    char line[2 * SHELL_WORDS_MAX + 3] = "";

    for (unsigned i = 0; i < SHELL_WORDS_MAX; i++)
        memcpy(line + 2 * i, "w ", 3);
    check(split(line)[0] == '[');
    strcat(line, "w");
    check_str(split(line), "2");
}

TEST(what_matches)
{
    const char *const candidates[] = {"limit", "list", "limit-percent", "info", NULL};
    const char *const none[] = {NULL};
    int common = -1;

    check_eq(shell_words_match("li", candidates, &common), 3);
    check_eq(common, 2);
    check_eq(shell_words_match("lim", candidates, &common), 2);
    check_eq(common, 5);
    check_eq(shell_words_match("inf", candidates, &common), 1);
    check_eq(common, 4);
    check_eq(shell_words_match("", candidates, &common), 4);
    check_eq(common, 0);
    check_eq(shell_words_match("x", candidates, &common), 0);
    check_eq(shell_words_match("", none, &common), 0);
}
