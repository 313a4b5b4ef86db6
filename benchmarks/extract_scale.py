"""Extracting a vector from models of growing size: time and peak memory against bytes.

    python benchmarks/extract_scale.py -o benchmarks/results/extract_scale.json --scratch FOLDER

Pairs of sharded bfloat16 checkpoints with random weights and the shapes of 0.1B, 1B, 3B and 7B
Llamas, written here and removed again. `alignvec extract --dtype bfloat16` is a process of its
own. The bound on its memory is 1 GB plus three times the largest tensor. 7B needs 45 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from merge_speed import apart, timed
from provenance import made

SHAPES = {  # hidden size, intermediate size, layers, key/value size, vocabulary
    "0.1B": (768, 2048, 12, 768, 32000),
    "1B": (2048, 5632, 22, 256, 32000),
    "3B": (3200, 8640, 26, 3200, 32000),
    "7B": (4096, 11008, 32, 4096, 32000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for size in options.sizes:
        for seed, name in enumerate(("base", "aligned")):
            apart(write_checkpoint, options.scratch / name, SHAPES[size], seed)
        written = sum(f.stat().st_size for f in (options.scratch / "base").glob("*.safetensors"))
        command = [
            str(Path(sys.executable).with_name("alignvec")), "-q", "extract",
            str(options.scratch / "base"), str(options.scratch / "aligned"),
            "--dtype", "bfloat16", "-o", str(options.scratch / "vector"),
        ]  # fmt: skip
        seconds, peak = timed(command)
        largest = SHAPES[size][4] * SHAPES[size][0] * 2 / 2**30
        results[size] = {
            "gb_each": written / 2**30,
            "seconds": seconds,
            "gb_per_second": 3 * written / 2**30 / seconds,
            "peak_gb": peak,
            "allowed_gb": 1 + 3 * largest,
        }
        print(size, json.dumps(results[size]), flush=True)
        shutil.rmtree(options.scratch)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**results, "made": made()}, indent=2) + "\n")


def write_checkpoint(folder: Path, shape: tuple[int, ...], seed: int) -> None:
    """A Llama of random numbers, drawn as they are written."""
    import torch

    from alignvec.files import write_json
    from alignvec.vector.stream import Output, write_tensors

    hidden, inner, layers, small, vocabulary = shape
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for module, size in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (small, hidden),
            "self_attn.v_proj": (small, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{module}.weight"] = size
    shapes["lm_head.weight"] = (vocabulary, hidden)

    def rows(start: int, stop: int, *rest: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        return torch.empty(stop - start, *rest).uniform_(-0.02, 0.02, generator=generator)

    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
              "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary,
              "num_attention_heads": hidden // 64, "num_key_value_heads": small // 64,
              "tie_word_embeddings": False}  # fmt: skip
    write_json(folder / "config.json", config)
    outputs = {
        name: Output(size, torch.bfloat16, lambda a, b, size=size: rows(a, b, *size[1:]))  # type: ignore[misc]
        for name, size in shapes.items()
    }
    write_tensors(folder, outputs)


if __name__ == "__main__":
    main()
