/* SPDX-License-Identifier: Apache-2.0 */

/* The forms of the emulator's settings; README.md says what they mean. */

#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/parse.h"
#include "cuda/driver.h"

static int parse_one_size(const char *text, size_t length, uint64_t *ret_bytes, char *error)
{
    char word[32];
    uint64_t bytes;

    if (length < sizeof(word)) {
        memcpy(word, text, length);
        word[length] = '\0';
        if (parse_size(word, &bytes) == 0 && bytes > 0 && bytes % EMU_GRANULE == 0 &&
            bytes <= EMU_MAX_DEVICE_BYTES) {
            *ret_bytes = bytes;
            return 0;
        }
    }
    snprintf(error, EMU_ERROR_MAX, "Emulated device size \"%.*s\" is not a multiple of 2 MiB up to 512 GiB",
             (int)(length > 32 ? 32 : length), text);
    return -EINVAL;
}

int config_parse_sizes(const char *text, uint64_t ret_totals[static EMU_MAX_DEVICES], unsigned *ret_n,
                       char error[static EMU_ERROR_MAX])
{
    uint64_t totals[EMU_MAX_DEVICES];
    unsigned n = 0;

    for (;;) {
        size_t length = strcspn(text, ",");
        int r;

        if (n == EMU_MAX_DEVICES) {
            snprintf(error, EMU_ERROR_MAX, "More than %d emulated devices", EMU_MAX_DEVICES);
            return -EINVAL;
        }
        r = parse_one_size(text, length, &totals[n], error);
        if (r < 0)
            return r;
        n++;
        if (text[length] == '\0')
            break;
        text += length + 1;
    }
    memcpy(ret_totals, totals, n * sizeof(*totals));
    *ret_n = n;
    return 0;
}

/* The device that an entry names, or n_devices. */
static unsigned find_device(const char *entry, size_t length, const CUuuid *uuids, unsigned n_devices)
{
    unsigned found = n_devices, number = 0;
    char name[CUDA_UUID_MAX];

    if (length > 4 && strncmp(entry, "GPU-", 4) == 0) {
        for (unsigned i = 0; i < n_devices; i++) {
            if (length >= sizeof(name) || strncasecmp(cuda_uuid_format(name, &uuids[i]), entry, length) != 0)
                continue;
            if (found != n_devices)
                return n_devices;
            found = i;
        }
        return found;
    }
    if (length == 0 || length > 3)
        return n_devices;
    for (size_t i = 0; i < length; i++) {
        if (!isdigit((unsigned char)entry[i]))
            return n_devices;
        number = number * 10 + (unsigned)(entry[i] - '0');
    }
    return number < n_devices ? number : n_devices;
}

unsigned config_parse_visible(const char *text, const CUuuid *uuids, unsigned n_devices,
                              unsigned ret_devices[static EMU_MAX_DEVICES])
{
    unsigned n = 0;

    for (;;) {
        size_t length = strcspn(text, ",");
        unsigned device = find_device(text, length, uuids, n_devices);

        if (device == n_devices)
            return n;
        for (unsigned i = 0; i < n; i++)
            if (ret_devices[i] == device)
                return 0;
        ret_devices[n++] = device;
        if (text[length] == '\0')
            return n;
        text += length + 1;
    }
}

/* FNV-1a. */
static uint64_t hash(uint64_t basis, const char *text, unsigned device)
{
    for (; *text; text++)
        basis = (basis ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return (basis ^ device) * UINT64_C(0x100000001b3);
}

CUuuid config_uuid(const char *path, unsigned device)
{
    uint64_t halves[2] = {hash(UINT64_C(0xcbf29ce484222325), path, device),
                          hash(UINT64_C(0x84222325cbf29ce4), path, device)};
    CUuuid uuid;

    memcpy(uuid.bytes, halves, sizeof(uuid.bytes));
    uuid.bytes[6] = (char)((uuid.bytes[6] & 0x0f) | 0x80); /* version 8: our own making */
    uuid.bytes[8] = (char)((uuid.bytes[8] & 0x3f) | 0x80);
    return uuid;
}
