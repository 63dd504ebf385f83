/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the fake daemon sends, and what becomes of it when it lies.
 */

#include "fakedaemon.h"

/* One message with borrowed descriptors; of the lies, those that are about packets are told. */
void fake_answer(int fd, enum fake_lie lie, uint16_t type, uint32_t request, const ProtobufCMessage *body,
                 const int *with, unsigned n_fds);

void fake_refuse(int fd, uint32_t request, Kvcached__Error error, const char *reason);
