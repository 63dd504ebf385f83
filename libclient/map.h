/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Mapping and unmapping, for who holds the client's lock. The lock is released while they wait for the daemon.
 */

#include <stddef.h>
#include <stdint.h>

struct kvc_region;

/* As kvc_region_map() and kvc_region_unmap(). */
int map_pages(struct kvc_region *region, const uint64_t *pages, size_t n);
int unmap_pages(struct kvc_region *region, const uint64_t *pages, size_t n);
