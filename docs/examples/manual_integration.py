# SPDX-License-Identifier: Apache-2.0
"""Pages by hand: what an engine of one's own needs, when it keeps its own books of blocks."""

from __future__ import annotations

from kvcached.vmm_ops import (
    create_kv_tensors,
    init_kvcached,
    map_to_kv_tensors,
    shutdown_kvcached,
    unmap_from_kv_tensors,
)

MIB = 1 << 20
PAGE = 2 * MIB
LAYERS, BYTES_PER_LAYER = 4, 64 * MIB  # K and V together


def main() -> None:
    # With a page for each layer's K and V; the offset of a page is the same in all of them.
    init_kvcached("cuda:0", page_size=PAGE, contiguous_layout=False)
    tensors = create_kv_tensors(BYTES_PER_LAYER, 2, "cuda:0", LAYERS)
    print(f"{len(tensors)} tensors of {tensors[0].numel()} elements, nothing mapped")

    map_to_kv_tensors([0, 3 * PAGE])
    elements = PAGE // 2
    for layer, tensor in enumerate(tensors):
        tensor[3 * elements : 4 * elements] = layer
    print("page 3 of each layer's K:", [int(tensor[3 * elements]) for tensor in tensors])

    try:
        map_to_kv_tensors([3 * PAGE])
    except ValueError as error:
        print(f"mapped twice: {error}")

    unmap_from_kv_tensors([0, 3 * PAGE])
    shutdown_kvcached()


if __name__ == "__main__":
    main()
