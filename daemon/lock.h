/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Lock: a file that one process at a time holds for as long as it lives. The file is removed on release.
 */

#include "base/cleanup.h"

enum {
    _LOCK_E_SUCCESS,
    LOCK_E_HELD, /* another process has it */
};

struct lock;

/* 0, LOCK_E_HELD, or negative. */
int lock_take(const char *path, struct lock **ret);
struct lock *lock_release(struct lock *lock);
DEFINE_CLEANUP(struct lock *, lock_release);
