/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Whether somebody wants the call of the thread at hand to end: asked now and then while it waits, with no
 * lock held, since the answer may come from code that uses the library.
 */

#include <stdbool.h>
#include <stdint.h>

struct interrupt {
    int (*is_wanted)(void *data); /* NULL: nobody can */
    void *data;
};

/* A wait begins, or goes on after asking: the moment at which to ask. UINT64_MAX: never. */
uint64_t interrupt_due_ns(const struct interrupt *interrupt);

/* Asks. 0 or KVC_E_INTERRUPTED. */
int interrupt_ask(const struct interrupt *interrupt);

/* The thread is the library's own: from now on this one is asked, in place of the host's. */
void interrupt_replace(const struct interrupt *interrupt);
