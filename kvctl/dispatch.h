/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Dispatch: from an argument vector to a command and its exit status.
 */

/* Checks what can be checked of any command by the table, runs it, and says itself what went wrong. argv[0]
 * is the program's name; argv is reordered. */
int dispatch(int argc, char **argv);
