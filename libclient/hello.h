/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Hello: the first exchange on a connection, and what the daemon says about itself and its GPU.
 */

#include <limits.h>

#include "client.h"

struct welcome {
    struct kvc_device device;       /* without the ordinal */
    char emulated_folder[PATH_MAX]; /* "": a real GPU */
    uint32_t gpu_index;
};

/* 0, or why this daemon is not to be used. Maps the client's status page. */
int hello_exchange(struct kvc_client *client, const struct settings *settings, struct welcome *ret);
