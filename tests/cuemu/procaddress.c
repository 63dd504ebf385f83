/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Finding entry points by name, as run-time libraries and language bindings do. A name stands for the newest
 * version that the caller's toolkit can know; the exact symbol is accepted too. Streams per thread need no
 * twins of their own here, so that flag changes nothing.
 */

#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct symbol {
    const char *name;
    void (*function)(void);
};

static const struct symbol symbols[] = {
#define CUDA_FUNCTION(name, symbol, parameters) {#symbol, (void (*)(void))symbol},
#include "cuda/driver.def"
#include "extra.def"
#undef CUDA_FUNCTION
};

/* Symbols that are newer than the first toolkit that could ask at all (11.3), and those with younger twins.
 */
static const struct {
    const char *name;
    int since;
} introduced[] = {
    {"cuDeviceGetUuid_v2", 11040},    {"cuCtxGetId", 12000},        {"cuGetProcAddress_v2", 12000},
    {"cuCtxCreate_v4", 12050},        {"cuCtxGetDevice_v2", 13000}, {"cuCtxSynchronize_v2", 13000},
    {"cuEventElapsedTime_v2", 12080},
};

static int since(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(introduced); i++)
        if (strcmp(introduced[i].name, name) == 0)
            return introduced[i].since;
    return 0;
}

/* 1 for the symbol "cuMemAlloc" of the name "cuMemAlloc", 2 for "cuMemAlloc_v2"; 0 where they don't belong
 * together. */
static int version_of(const char *symbol, const char *name)
{
    size_t length = strlen(name);

    if (strncmp(symbol, name, length) != 0)
        return 0;
    if (symbol[length] == '\0')
        return 1;
    return strncmp(symbol + length, "_v", 2) == 0 ? atoi(symbol + length + 2) : 0;
}

static const struct symbol *find(const char *name, int toolkit, CUdriverProcAddressQueryResult *ret_status)
{
    const struct symbol *best = NULL;
    int best_version = 0;

    *ret_status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    for (size_t i = 0; i < ARRAY_SIZE(symbols); i++) {
        int version = version_of(symbols[i].name, name);

        if (version <= best_version)
            continue;
        if (since(symbols[i].name) > toolkit) {
            if (!best)
                *ret_status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
            continue;
        }
        best = &symbols[i];
        best_version = version;
        *ret_status = CU_GET_PROC_ADDRESS_SUCCESS;
    }
    return best;
}

static CUresult get(const char *name, void **function, int toolkit, cuuint64_t flags,
                    CUdriverProcAddressQueryResult *ret_status)
{
    CUdriverProcAddressQueryResult status;
    const struct symbol *found;

    if (!name || !function || toolkit <= 0 ||
        flags &
            ~(cuuint64_t)(CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM))
        return CUDA_ERROR_INVALID_VALUE;
    found = find(name, toolkit, &status);
    *function = NULL;
    if (ret_status)
        *ret_status = status;
    if (!found)
        return CUDA_ERROR_NOT_FOUND;
    memcpy(function, &found->function, sizeof(*function));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status)
{
    return CALL(cuGetProcAddress_v2, NEEDS_NOTHING, get(symbol, function, version, flags, status));
}

EXPORT CUresult cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
    return CALL(cuGetProcAddress, NEEDS_NOTHING, get(symbol, function, version, flags, NULL));
}
