/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl's shell with libedit. What libedit keeps is its own; here is what it asks for: the prompt, the
 * words that could complete a line, and where the history lies. Input that is no terminal is read without
 * it.
 */

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "editor_plain.h"
#include "shell_words.h"

#define HISTORY_LINES 1000
#define HISTORY_MODE 0600

struct editor {
    const char *prompt;
    const char *history_file;
    editor_candidates_fn candidates;
    EditLine *line; /* NULL: the input is no terminal */
    History *history;
};

static char *prompt_of(EditLine *line)
{
    struct editor *editor;

    el_get(line, EL_CLIENTDATA, &editor);
    return (char *)editor->prompt;
}

/* ---- Completion ---- */

static void show(const char *word, const char *const *candidates)
{
    putchar('\n');
    for (; *candidates; candidates++)
        if (strncmp(*candidates, word, strlen(word)) == 0)
            printf("%s  ", *candidates);
    putchar('\n');
    fflush(stdout);
}

/* The words before the cursor; the last one is what is being written, perhaps empty. */
static int words_before(const LineInfo *info, char *copy, char **words)
{
    size_t length = (size_t)(info->cursor - info->buffer);
    bool fresh = length == 0 || info->cursor[-1] == ' ';
    int n;

    memcpy(copy, info->buffer, length);
    copy[length] = '\0';

    if (shell_words_split(copy, words, &n) != 0 || n == SHELL_WORDS_MAX)
        return -1;
    if (fresh || n == 0)
        words[n++] = copy + length;
    return n;
}

static unsigned char complete(EditLine *line, int key)
{
    const LineInfo *info = el_line(line);
    size_t length = (size_t)(info->cursor - info->buffer);
    _cleanup_free_ char *copy = malloc(length + 1), *insert = NULL;
    char *words[SHELL_WORDS_MAX + 1];
    const char *const *candidates;
    struct editor *editor;
    int n, n_matches, common;
    size_t typed;

    el_get(line, EL_CLIENTDATA, &editor);
    n = copy ? words_before(info, copy, words) : -1;
    if (n < 0)
        return CC_ERROR;
    candidates = editor->candidates(words, n - 1);
    n_matches = shell_words_match(words[n - 1], candidates, &common);
    typed = strlen(words[n - 1]);
    if (n_matches == 0)
        return CC_ERROR;
    for (const char *const *c = candidates; (size_t)common > typed && !insert && *c; c++)
        if (strncmp(*c, words[n - 1], typed) == 0)
            insert = strndup(*c + typed, (size_t)common - typed);
    if (insert && el_insertstr(line, insert) < 0)
        return CC_ERROR;
    if (n_matches == 1)
        return el_insertstr(line, " ") < 0 ? CC_ERROR : CC_REFRESH;
    if (insert)
        return CC_REFRESH;
    show(words[n - 1], candidates);
    return CC_REDISPLAY;
}

/* ---- History ---- */

/* Nobody else need know which instances an administrator deals with. */
static void load_history(struct editor *editor)
{
    HistEvent event;
    int fd;

    history(editor->history, &event, H_SETSIZE, HISTORY_LINES);
    history(editor->history, &event, H_SETUNIQUE, 1);
    if (!editor->history_file)
        return;
    fd = open(editor->history_file, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, HISTORY_MODE);
    if (fd < 0) { /* a home that cannot be written is no reason not to work */
        editor->history_file = NULL;
        return;
    }
    fchmod(fd, HISTORY_MODE);
    close(fd);
    history(editor->history, &event, H_LOAD, editor->history_file);
}

static void keep(struct editor *editor, const char *line)
{
    HistEvent event;

    if (line[strspn(line, " \t\r\n")] == '\0')
        return;
    history(editor->history, &event, H_ENTER, line);
    if (editor->history_file)
        history(editor->history, &event, H_SAVE, editor->history_file);
}

/* ---- The editor ---- */

static int start(struct editor *editor)
{
    editor->line = el_init("kvctl", stdin, stdout, stderr);
    editor->history = history_init();
    if (!editor->line || !editor->history)
        return -ENOMEM;
    load_history(editor);
    el_set(editor->line, EL_CLIENTDATA, editor);
    el_set(editor->line, EL_PROMPT, prompt_of);
    el_set(editor->line, EL_EDITOR, "emacs");
    el_set(editor->line, EL_SIGNAL, 1);
    el_set(editor->line, EL_HIST, history, editor->history);
    el_set(editor->line, EL_ADDFN, "kvctl-complete", "Complete a word", complete);
    el_set(editor->line, EL_BIND, "^I", "kvctl-complete", NULL);
    el_source(editor->line, NULL);
    return 0;
}

int editor_new(const char *prompt, const char *history_file, editor_candidates_fn candidates,
               struct editor **ret)
{
    _cleanup_(editor_freep) struct editor *editor = calloc(1, sizeof(*editor));

    if (!editor)
        return -ENOMEM;
    editor->prompt = prompt;
    editor->history_file = history_file;
    editor->candidates = candidates;
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && start(editor) < 0)
        return -ENOMEM;
    *ret = steal_pointer(editor);
    return 0;
}

struct editor *editor_free(struct editor *editor)
{
    if (!editor)
        return NULL;
    if (editor->line)
        el_end(editor->line);
    if (editor->history)
        history_end(editor->history);
    free(editor);
    return NULL;
}

int editor_read(struct editor *editor, char **ret_line)
{
    const char *line;
    int n;

    if (!editor->line)
        return editor_plain_read(editor->prompt, ret_line);
    errno = 0;
    line = el_gets(editor->line, &n);
    if (!line && n < 0 && errno == EINTR)
        return EDITOR_E_INTERRUPTED;
    if (!line || n <= 0)
        return EDITOR_E_END;
    keep(editor, line);
    *ret_line = strdup(line);
    return *ret_line ? 0 : -ENOMEM;
}
