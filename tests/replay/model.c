/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The models that kvreplay knows. It owns the constants and where they come from.
 *
 * Sizes come from the models' public configurations (config.json: num_hidden_layers, num_key_value_heads,
 * head_dim) in bfloat16: a token's keys and values take layers × KV heads × head dimension × 2 (K, V) × 2
 * bytes. Weights are the number of parameters × 2 bytes.
 *
 * Rates are for one A100-80G, rounded: a decoding step is bound by reading the weights once, at about 2 TB/s
 * of HBM2e (the data sheet's number); prefill by arithmetic, at 2 × parameters floating-point operations a
 * token and some 60 % of the data sheet's 312 dense bfloat16 TFLOPS: 12,000 tokens a second for 8 billion
 * parameters. Each decoding request adds 20 µs for its own attention and sampling. 2,048 tokens and 256
 * requests a step are customary bounds for chunked prefill, and 16 tokens the customary block.
 */

#include "model.h"

#include <string.h>

#include "base/arith.h"

static const struct model models[] = {
    {
        .name = "llama-3.1-8b",
        .summary = "32 layers, 8 KV heads of 128: 128 KiB a token; 8.0 billion parameters",
        .weights_bytes = UINT64_C(16000000000),
        .token_bytes = 32 * 8 * 128 * 2 * 2,
        .layers = 32,
        .block_tokens = 16,
        .step_s = 0.008,
        .prefill_s = 1.0 / 12000,
        .decode_s = 2e-5,
        .step_tokens = 2048,
        .max_running = 256,
    },
    {
        .name = "qwen2.5-7b",
        .summary = "28 layers, 4 KV heads of 128: 56 KiB a token; 7.6 billion parameters",
        .weights_bytes = UINT64_C(15200000000),
        .token_bytes = 28 * 4 * 128 * 2 * 2,
        .layers = 28,
        .block_tokens = 16,
        .step_s = 0.0076,
        .prefill_s = 1.0 / 12600,
        .decode_s = 2e-5,
        .step_tokens = 2048,
        .max_running = 256,
    },
    {
        .name = "llama-3.2-1b",
        .summary = "16 layers, 8 KV heads of 64: 32 KiB a token; 1.24 billion parameters",
        .weights_bytes = UINT64_C(2480000000),
        .token_bytes = 16 * 8 * 64 * 2 * 2,
        .layers = 16,
        .block_tokens = 16,
        .step_s = 0.00124,
        .prefill_s = 1.0 / 77000,
        .decode_s = 2e-5,
        .step_tokens = 2048,
        .max_running = 256,
    },
};

const struct model *model_at(size_t n)
{
    return n < ARRAY_SIZE(models) ? &models[n] : NULL;
}

const struct model *model_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(models); i++)
        if (strcmp(models[i].name, name) == 0)
            return &models[i];
    return NULL;
}
