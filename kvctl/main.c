/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl: runs a command, and checks that what was printed arrived.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "dispatch.h"

int main(int argc, char **argv)
{
    int status = dispatch(argc, argv);
    bool written = !ferror(stdout);

    errno = 0;
    if (fclose(stdout) != 0 || !written)
        return command_complain(STATUS_FAILED, "The output could not be written%s%s", errno ? ": " : "",
                                errno ? strerror(errno) : "");
    return status;
}
