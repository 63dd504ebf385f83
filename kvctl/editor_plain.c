/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Lines as they come, for scripts, and where there is no libedit.
 */

#include "editor_plain.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

int editor_plain_read(const char *prompt, char **ret_line)
{
    _cleanup_free_ char *line = NULL;
    size_t size = 0;

    if (isatty(STDIN_FILENO)) {
        fputs(prompt, stdout);
        fflush(stdout);
    }
    errno = 0;
    if (getline(&line, &size, stdin) < 0) {
        if (errno == EINTR) {
            clearerr(stdin);
            return EDITOR_E_INTERRUPTED;
        }
        return errno ? -errno : EDITOR_E_END;
    }
    *ret_line = steal_pointer(line);
    return 0;
}
