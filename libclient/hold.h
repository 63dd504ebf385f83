/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Hold: address space that outlives its region, for whoever still has pointers into it.
 */

#include <stdint.h>

#include "gpu.h"

struct kvc_hold;

/* Takes over the reservation; the first hold is the region's. 0 or KVC_E_NOMEM. */
int hold_new(struct gpu *gpu, CUdeviceptr address, uint64_t bytes, struct kvc_hold **ret);
struct kvc_hold *hold_ref(struct kvc_hold *hold);

/* The last one's frees the addresses. NULL is fine. */
CUresult hold_drop(struct kvc_hold *hold);
