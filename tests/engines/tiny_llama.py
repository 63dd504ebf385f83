# SPDX-License-Identifier: Apache-2.0
"""Makes a small model with a tokenizer, seeded and without any download: tiny_llama.py FOLDER [KIND]

A block of 32 tokens is 128 KiB in each of its layers (float32, 4 heads of 128), so a page of 2 MiB a layer
has 16 blocks. Kinds: llama, of two layers; llama3, of three; window, whose layers see the last 96 tokens
only; hybrid, where three layers of five do."""

from __future__ import annotations

import sys
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 512
WINDOW = 96
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "torch_dtype": "float32",
}
FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = {
    "llama": lambda: LlamaConfig(num_hidden_layers=2, **SHAPE),
    "llama3": lambda: LlamaConfig(num_hidden_layers=3, **SHAPE),
    "window": lambda: MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, **SHAPE),
    "hybrid": lambda: Gemma3TextConfig(
        num_hidden_layers=5,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING],
        **SHAPE,
    ),
}


def main(folder: str, kind: str = "llama") -> None:
    torch.manual_seed(1234)
    config = KINDS[kind]()
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    words |= {f"<x{i}>": i for i in range(259, VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
