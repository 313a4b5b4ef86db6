"""LoRA adapters for llama.cpp: its names of the tensors and its order of their rows."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from alignvec.base.model_weights import ModelWeights
from alignvec.errors import AlignvecError
from alignvec.files import atomic_file, read_object, validated
from alignvec.vector.delta import LowRank
from alignvec.vector.model_delta import ModelDelta

# transformers' model_type: llama.cpp's name of the architecture. Only those whose weights llama.cpp
# stores as they are, but for the order of query and key rows in `_PERMUTED`.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gpt2": "gpt2",
    "phi": "phi2",
    "phi3": "phi3",
}
_PERMUTED = ("llama", "mistral")


class _Config(BaseModel):
    """What of a base's `config.json` names and orders its weights."""

    model_config = ConfigDict(strict=True)

    model_type: str
    layers: int = Field(
        validation_alias=AliasChoices("num_hidden_layers", "n_layer"), ge=1, le=10_000
    )
    num_attention_heads: int | None = Field(default=None, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)


def write_gguf(
    vector: ModelDelta,
    factored: dict[str, LowRank],
    out: Path,
    weights: ModelWeights,
    overwrite: bool,
) -> Path:
    """Write `factored`, the deltas of `vector`, as a LoRA adapter: a GGUF file.

    llama.cpp's adapter format has `NAME.lora_a` [r, in] and `NAME.lora_b` [out, r].

    Args:
        weights: of the vector's base.

    Raises:
        AlignvecError: see `export`.
    """
    file = weights.folder / "config.json"
    content = read_object(file)
    kind = content.get("model_type")
    if kind not in _ARCHITECTURES:
        raise AlignvecError(
            f"gguf adapters are written for {', '.join(_ARCHITECTURES)}; this base is {kind}"
        )
    config = validated(_Config, content, file)
    named = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(named[_ARCHITECTURES[kind]], config.layers)
    taken: set[str] = set()
    known = weights.names(factored)
    with atomic_file(out, overwrite) as partial:
        writer = gguf.GGUFWriter(partial, _ARCHITECTURES[kind])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(vector.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        rank = max(delta.rank for delta in factored.values())
        # llama.cpp scales by alpha / rank, the rank being that of each tensor.
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_string("alignvec.base", json.dumps(vars(vector.base)))
        for name, delta in factored.items():
            if name in weights.tied:
                raise AlignvecError(
                    f"the vector changes {name}, which this base ties to its embedding, so that "
                    "llama.cpp has no tensor for it; fold the vector"
                )
            target = names.get_name(known.get(name, name), try_suffixes=(".weight",))
            if target is None:
                raise AlignvecError(f"llama.cpp has no name for {name} in {kind}")
            if target in taken:
                raise AlignvecError(f"{name} is a second {target} to llama.cpp")
            taken.add(target)
            b = _reordered(name, delta.b.float(), config) if kind in _PERMUTED else delta.b.float()
            # Scaling alpha / rank is one for all: factors of a lower rank make up for it.
            a, b = delta.a.float(), b * (delta.rank / rank)
            writer.add_tensor(f"{target}.lora_a", a.contiguous().numpy())
            writer.add_tensor(f"{target}.lora_b", b.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out


def _reordered(name: str, b: torch.Tensor, config: _Config) -> torch.Tensor:
    """Rows of queries and keys as llama.cpp's rotary embedding wants them.

    transformers rotates the first half of a head against the second, llama.cpp's llama rotates
    neighbours: row i of the first half and row i of the second come to lie side by side.
    """
    heads = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads or config.num_attention_heads,
    }
    for ending, count in heads.items():
        if name.endswith(ending):
            if count is None or b.shape[0] % (2 * count):
                raise AlignvecError(f"{name} does not divide into the base's {count} heads")
            return b.reshape(count, 2, -1, b.shape[1]).transpose(1, 2).reshape(b.shape)
    return b
