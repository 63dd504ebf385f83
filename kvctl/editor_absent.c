/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl's shell without libedit: it works, without editing, history and completion.
 */

#include <errno.h>
#include <stdlib.h>

#include "editor_plain.h"

struct editor {
    const char *prompt;
};

int editor_new(const char *prompt, const char *history, editor_candidates_fn candidates, struct editor **ret)
{
    struct editor *editor = malloc(sizeof(*editor));

    if (!editor)
        return -ENOMEM;
    editor->prompt = prompt;
    *ret = editor;
    return 0;
}

struct editor *editor_free(struct editor *editor)
{
    free(editor);
    return NULL;
}

int editor_read(struct editor *editor, char **ret_line)
{
    return editor_plain_read(editor->prompt, ret_line);
}
