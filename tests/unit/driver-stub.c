/* SPDX-License-Identifier: Apache-2.0 */

/* What the CUDA toolkit ships for link editors: every symbol, and nothing behind them. */

#include "cuda/prototypes.h"

#define CUDA_FUNCTION(name, symbol, parameters)                                                              \
    __attribute__((visibility("default"))) CUresult symbol parameters                                        \
    {                                                                                                        \
        return CUDA_ERROR_STUB_LIBRARY;                                                                      \
    }
#include "cuda/driver.def"
#undef CUDA_FUNCTION
