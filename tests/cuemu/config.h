/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The forms of the emulator's settings. Pure. */

#include <stdint.h>

#include "cuda/api.h"
#include "registry.h"

#define CONFIG_DEFAULT_BYTES (80 * GIB)

/* "80G,80G": 0 or -EINVAL with a sentence. Sizes are multiples of 2 MiB. */
int config_parse_sizes(const char *text, uint64_t ret_totals[static EMU_MAX_DEVICES], unsigned *ret_n,
                       char error[static EMU_ERROR_MAX]);

/*
 * CUDA_VISIBLE_DEVICES: ordinals or beginnings of "GPU-…" names; the list ends at the first entry that names
 * no device, and an entry given twice makes it empty, as the vendor's driver has it. Returns how many are
 * visible.
 */
unsigned config_parse_visible(const char *text, const CUuuid *uuids, unsigned n_devices,
                              unsigned ret_devices[static EMU_MAX_DEVICES]);

/* The UUID of a folder's device: the same whenever the folder is made anew, different for others. */
CUuuid config_uuid(const char *path, unsigned device);

/* The bus in "0000:01:00.0". */
#define CONFIG_PCI_BUS(device) (1u + (device))

#define CONFIG_NAME "KVCached emulated GPU (%u GiB)"
