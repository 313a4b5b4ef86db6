"""What knobs take of the memory of vLLM's workers, computed from the shapes of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Linear layers that are cut by what comes in; the others are cut by what goes out.
_BY_INPUT = re.compile(r"\.(o_proj|down_proj|out_proj|c_proj|dense|dense_4h_to_h|fc2|w2|wo)$")
_EMBEDDING = re.compile(r"\.(embed_tokens|wte|word_embeddings)$")


def knob_bytes(shapes: Mapping[str, tuple[int, ...]], rank: int, itemsize: int = 2) -> int:
    """Of the factors of one knob on these weights, on one worker.

    Args:
        shapes: by name, [out, in] of each weight that it changes; what is no matrix has no factors.
        itemsize: bytes of a number: 2 of bfloat16.
    """
    return sum(rank * sum(shape) for shape in shapes.values() if len(shape) == 2) * itemsize


def slots_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    rank: int,
    slots: int = 1,
    itemsize: int = 2,
    shards: int = 1,
) -> int:
    """What vLLM sets aside on each GPU when it starts with adapters, whatever is in them.

    It has a place for every linear layer, the embedding and the head, and cuts that of a linear
    layer as it cuts the layer, one of the two factors whole.

    Args:
        shapes: by name, of all weights of a model as its files have them; where there is one slot
            alone, which is the knobs', of those that they change.
        rank: of a slot: that of all knobs together, rounded up to one that vLLM knows.
        slots: `--max-loras`.
        shards: `--tensor-parallel-size`; at most the model's heads of keys and values.
    """
    names = {name.removesuffix(".weight"): shape for name, shape in shapes.items()}
    matrices = {name: shape for name, shape in names.items() if len(shape) == 2}
    embeddings = [shape for name, shape in matrices.items() if _EMBEDDING.search(f".{name}")]
    if "lm_head" not in matrices and embeddings:
        matrices["lm_head"] = embeddings[0]  # tied, and a place for it all the same
    numbers = 0
    for name, (out, width) in matrices.items():
        if _EMBEDDING.search(f".{name}") or name == "lm_head":
            numbers += out + width
        elif _BY_INPUT.search(name):
            numbers += out + width // shards
        else:
            numbers += out // shards + width
    return rank * slots * numbers * itemsize
