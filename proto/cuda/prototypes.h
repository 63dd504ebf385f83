/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The entry points of libcuda.so.1 as functions, under the names of their symbols. */

#include "cuda/api.h"

#ifndef KVCACHED_CUDA_H

#define CUDA_FUNCTION(name, symbol, parameters) CUresult symbol parameters;
#include "cuda/driver.def"
#undef CUDA_FUNCTION

#endif
