"""The memory that knobs take on vLLM, in MB for each GPU, from the shapes of a model.

    python benchmarks/vllm_memory.py -o benchmarks/results/vllm_memory.json
    python benchmarks/vllm_memory.py --rank 16 --knobs 3 --slots 1 --base FOLDER

Computed, not measured: tests/on_vllm/test_slots.py compares it with what vLLM sets aside for a
small model, byte for byte. The shapes of 8B and 70B are those of Llama 3.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import find_base
from alignvec.serve.vllm.memory import knob_bytes, slots_bytes
from provenance import made

# hidden size, intermediate size, layers, key/value size, vocabulary
LLAMAS = {"8B": (4096, 14336, 32, 1024, 128256), "70B": (8192, 28672, 80, 1024, 128256)}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has slots for
SHARDS = (1, 2, 4, 8)
MB = 1e6


def llama(size: str) -> dict[str, tuple[int, ...]]:
    """The weights of a Llama: name -> [out, in]."""
    hidden, inner, layers, keys, vocabulary = LLAMAS[size]
    linear = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(layers)
        for name, shape in linear.items()
    }
    head = (vocabulary, hidden)
    return {**shapes, "model.embed_tokens.weight": head, "lm_head.weight": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--rank", type=int, default=16, help="of each knob")
    parser.add_argument("--knobs", type=int, default=3)
    parser.add_argument("--slots", type=int, default=1, help="vLLM's --max-loras")
    parser.add_argument("--base", help="a model, instead of the two Llamas")
    options = parser.parse_args()
    models = {size: llama(size) for size in LLAMAS}
    if options.base:
        weights = ModelWeights(find_base(options.base))
        models = {Path(options.base).name: {name: weights.shape(name) for name in weights}}
    rank = next(one for one in RANKS if one >= options.rank * options.knobs)
    found: dict[str, Any] = {}
    for name, shapes in models.items():
        inner = {
            name: shape
            for name, shape in shapes.items()
            if not name.startswith(("model.embed", "lm_head"))
        }
        placed = inner if options.slots == 1 else shapes  # one slot: what the knobs change
        found[name] = {
            "knob": knob_bytes(inner, options.rank) / MB,
            "slot": {
                str(shards): slots_bytes(placed, rank, options.slots, shards=shards) / MB
                for shards in SHARDS
            },
        }
    print(f"{options.knobs} knobs of rank {options.rank} in slots of rank {rank}, bfloat16, in MB")
    for name, one in found.items():
        slots = ", ".join(f"{taken:.0f} on {shards} GPUs" for shards, taken in one["slot"].items())
        print(f"{name}: a knob {one['knob']:.0f}; what vLLM sets aside on each GPU: {slots}")
    if options.out:
        result = {"made": made(), "rank": options.rank, "slot_rank": rank, "models": found}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
