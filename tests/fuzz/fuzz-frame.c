/* SPDX-License-Identifier: Apache-2.0 */

/* An accepted header describes the packet exactly and is written back as it was read. */

#include <stdlib.h>
#include <string.h>

#include "wire/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t written[FRAME_HEADER_SIZE];
    struct frame_header header;
    int r = frame_read_header(data, size, &header);

    if (strlen(frame_strerror(r)) == 0)
        abort();
    if (r != 0)
        return 0;
    if (FRAME_HEADER_SIZE + (size_t)header.length != size || header.n_fds > FRAME_FDS_MAX)
        abort();
    frame_write_header(written, &header);
    if (memcmp(written, data, sizeof(written)) != 0)
        abort();
    return 0;
}
