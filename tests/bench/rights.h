/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The barest message that can carry descriptors: their number, and they.
 */

#include <stdint.h>

#define RIGHTS_MAX 200 /* one packet carries no more than 253 descriptors */

/* Both end the process when it doesn't work. The descriptors that are received are the caller's. */
void send_fds(int socket, const int *fds, uint32_t n);
void receive_fds(int socket, int *fds, uint32_t n);
