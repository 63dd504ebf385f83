/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * `kvctl info` for people. Pure: what it prints depends on nothing but its arguments.
 */

#include <stdio.h>

#include "wire/codec.h"

void describe_instance(FILE *out, const Kvcached__InstanceInfo *instance);
void describe_why(FILE *out, const Kvcached__WhyReply *reply);
void describe_daemon(FILE *out, const Kvcached__InfoReply *info, const char *socket_path);
