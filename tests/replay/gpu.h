/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What an engine does with the GPU beside its KV cache: it holds weights, and copies to and from the device.
 *
 * Every call is tried again when it fails, a few times, because a replay has to get through a driver that
 * fails now and then; how often that happened is counted. Functions return 0 or -EIO, and gpu_error() says
 * what failed.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

#define GPU_ATTEMPTS 3

struct gpu;

/*
 * The driver library at `path`, on the device with this ordinal; its primary context becomes the calling
 * thread's. -ENOMEM, or -EIO with a sentence in `error`.
 */
#define GPU_ERROR_MAX 320
int gpu_new(const char *path, int ordinal, struct gpu **ret_gpu, char error[static GPU_ERROR_MAX]);
/* Frees the weights, too. */
struct gpu *gpu_free(struct gpu *gpu);

DEFINE_CLEANUP(struct gpu *, gpu_free);

int gpu_load_weights(struct gpu *gpu, uint64_t bytes);
int gpu_write(struct gpu *gpu, uint64_t address, const void *from, size_t size);
int gpu_read(struct gpu *gpu, void *to, uint64_t address, size_t size);

const char *gpu_error(const struct gpu *gpu);
/* Calls that failed and were made again. */
uint64_t gpu_retries(const struct gpu *gpu);
