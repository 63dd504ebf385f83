/* SPDX-License-Identifier: Apache-2.0 */

/* Reading a command. It comes from a test, so a mistake in it is worth a plain complaint and no more. */

#include "kvpeer-words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/parse.h"

static struct words split(char *line)
{
    struct words words = {0};
    char *save = NULL;

    for (char *word = strtok_r(line, " \n", &save); word && words.n < WORDS_MAX;
         word = strtok_r(NULL, " \n", &save))
        words.word[words.n++] = word;
    return words;
}

void words_serve(void (*run)(const struct words *words))
{
    _cleanup_free_ char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        struct words words = split(line);

        if (words.n == 0)
            puts("error E_USAGE An empty line is no command");
        else
            run(&words);
        fflush(stdout);
    }
}

const char *words_value(const struct words *words, const char *key)
{
    size_t length = strlen(key);

    for (unsigned i = 1; i < words->n; i++)
        if (strncmp(words->word[i], key, length) == 0 && words->word[i][length] == '=')
            return words->word[i] + length + 1;
    return NULL;
}

bool words_size(const struct words *words, const char *key, uint64_t *ret)
{
    const char *text = words_value(words, key);

    return !text || parse_size(text, ret) == 0;
}

bool words_int(const struct words *words, const char *key, int *ret)
{
    const char *text = words_value(words, key);
    char *end;

    if (!text)
        return true;
    *ret = (int)strtol(text, &end, 10);
    return end != text && !*end;
}

bool words_number(const struct words *words, unsigned i, uint64_t *ret)
{
    return i < words->n && parse_u64(words->word[i], ret) == 0;
}

uint64_t *words_pages(const char *text, size_t *ret_n)
{
    uint64_t *pages = NULL, first, last;
    size_t n = 0;
    char *end;

    while (*text) {
        first = last = strtoull(text, &end, 10);
        if (end != text && *end == '-') {
            text = end + 1;
            last = strtoull(text, &end, 10);
        }
        if (end == text || (*end && *end != ',') || last < first || last - first > 10000000) {
            free(pages);
            return NULL;
        }
        pages = reallocarray(pages, n + (last - first) + 1, sizeof(*pages));
        for (; first <= last; first++)
            pages[n++] = first;
        text = *end ? end + 1 : end;
    }
    *ret_n = n;
    return pages;
}

bool words_sizes(const struct words *words, const char *key, uint64_t *sizes, size_t max, size_t *ret_n)
{
    const char *text = words_value(words, key);
    _cleanup_free_ char *copy = text ? strdup(text) : NULL;
    char *save = NULL;

    *ret_n = 0;
    for (char *size = copy ? strtok_r(copy, ",", &save) : NULL; size; size = strtok_r(NULL, ",", &save))
        if (*ret_n == max || parse_size(size, &sizes[(*ret_n)++]) < 0)
            return false;
    return true;
}

const char *words_error(int error)
{
    static const char *const names[] = {
        "KVC_OK",
        "KVC_E_INVALID",
        "KVC_E_NOMEM",
        "KVC_E_NOFILE",
        "KVC_E_CONNECT",
        "KVC_E_VERSION",
        "KVC_E_PROTOCOL",
        "KVC_E_REFUSED",
        "KVC_E_LIMIT",
        "KVC_E_BUDGET",
        "KVC_E_DEVICE_MEMORY",
        "KVC_E_DRIVER",
        "KVC_E_DISCONNECTED",
        "KVC_E_TIMEOUT",
        "KVC_E_FORKED",
        "KVC_E_FROZEN",
        "KVC_E_ENVIRONMENT",
        "KVC_E_MAPPED",
        "KVC_E_NOT_MAPPED",
        "KVC_E_NOSPACE",
        "KVC_E_WORKER",
        "KVC_E_IN_DOUBT",
        "KVC_E_PINNED",
        "KVC_E_NO_BLOCKS",
        "KVC_E_NOT_ALLOCATED",
        "KVC_E_RESOURCES",
        "KVC_E_INTERRUPTED",
        "KVC_E_WORKER_GONE",
    };

    return error <= 0 && -error < (int)ARRAY_SIZE(names) ? names[-error] : "unknown";
}
