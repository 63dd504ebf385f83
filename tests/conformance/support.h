/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the suites share. The entry points are the library's own, linked; with KVCACHED_CUDA_H the prototypes
 * are those of the vendor's header.
 */

#ifdef KVCACHED_CUDA_H
#include <cuda.h>
#else
#include "cuda/linked.h"
#endif

#include <stdbool.h>
#include <sys/types.h>

#include "base/arith.h"
#include "test.h"

#define GRANULE (2 * MIB)

/* The call must give exactly that result. */
#define expect(result, call) support_expect(__FILE__, __LINE__, #call, result, call)
#define ok(call) expect(CUDA_SUCCESS, call)

void support_expect(const char *file, int line, const char *text, CUresult want, CUresult got);

/*
 * Has the emulated devices in the test's folder, should it run on such; `sizes` as in KVCACHED_EMULATE, NULL
 * for the default. Before cuInit.
 */
void support_devices(const char *sizes);

/* cuInit, and the first device's primary context on this thread. */
void support_start(void);

/* Both. */
void support_begin(const char *sizes);

/* Gives the context back. */
void support_finish(void);

CUmemAllocationProp support_prop(CUdevice device, bool shareable);
CUmemAccessDesc support_access(CUdevice device, CUmemAccess_flags flags);

CUmemGenericAllocationHandle support_create(size_t size);
int support_export(CUmemGenericAllocationHandle handle);
CUdeviceptr support_reserve(size_t size);
void support_map(CUdeviceptr address, size_t size, CUmemGenericAllocationHandle handle);
void support_unmap(CUdeviceptr address, size_t size);
void support_free(CUdeviceptr address, size_t size);

/* Free device memory. */
size_t support_free_bytes(void);

/* Waits until free memory is that much, at most a second: what a process held comes back when it is gone. */
void support_expect_free(size_t bytes);

/* The emulated devices: files in their folder whose name begins so, and bytes of host memory behind the first
 * device. */
unsigned support_count_files(const char *prefix);
uint64_t support_host_bytes(void);

/* Descriptors over a socket. Trying fails where the queue is full. */
bool support_try_send(int socket, int fd);
void support_send(int socket, int fd);
int support_receive(int socket);

/* Forks a child before cuInit that runs the function and must exit with 0. */
pid_t support_spawn(void (*run)(void *), void *argument);
void support_wait(pid_t pid);
void support_kill(pid_t pid);
