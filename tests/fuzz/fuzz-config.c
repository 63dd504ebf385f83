/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Configuration text: any bytes are accepted or refused with a sentence that names the file.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config *config = NULL;
    char *text = malloc(size + 1);

    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    if (config_parse(text, "file", &config, error) == 0) {
        config_limit(config, "uid:1000@/a/b", "llama", UINT64_C(1) << 36);
        config_for_gpu(config, 1, "GPU-00000000-1111-2222-3333-44444444abcd");
    } else if (strncmp(error, "file:", 5) != 0) {
        abort();
    }
    config_free(config);
    free(text);
    return 0;
}
