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
    uint64_t features; /* bits of Kvcached__Feature that hold on this connection */
};

/* 0, or why this daemon is not to be used. Maps the client's status page, and its lease file
 * where the daemon knows leases. */
int hello_exchange(struct kvc_client *client, const struct settings *settings, struct welcome *ret);
