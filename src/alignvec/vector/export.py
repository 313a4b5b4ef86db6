"""A low-rank vector as a LoRA adapter for other tools: PEFT (and with it vLLM), llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from alignvec.errors import AlignvecError, check_known
from alignvec.files import check_free, checked, read_object, whole_folder, write_file
from alignvec.models import find_base
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank

if TYPE_CHECKING:
    import torch

FORMATS = ("peft", "gguf")
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


def export(
    vector: AlignmentVector,
    form: str,
    out: Path,
    base: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `vector` as an adapter with scaling 1: the tool's own scale is lambda.

    Args:
        form: "peft" (a folder) or "gguf" (a file).
        base: for gguf, where the base's config is; by default the base that the vector names.

    Raises:
        AlignvecError: an unknown format, a vector that is not wholly low-rank, or an architecture
            that cannot be written for llama.cpp.
    """
    check_known("format", form, FORMATS)
    check_free(out, overwrite)
    factored: dict[str, LowRank] = {}
    for name, delta in vector.deltas.items():
        if not isinstance(delta, LowRank):
            raise AlignvecError(
                f"{name} is dense, and an adapter holds only low-rank factors; first: alignvec "
                "compress VECTOR --rank 16 --drop-rest -o OUT"
            )
        factored[name] = delta
    if not factored:
        raise AlignvecError("the vector is empty; there is no adapter to write")
    if form == "gguf":
        return _write_gguf(vector, factored, out, base, overwrite)
    from alignvec.vector.store import write_adapter

    with whole_folder(out, overwrite) as partial:
        write_adapter(partial, vector.base.id, factored, vector.dtype)
    return out


def _write_gguf(
    vector: AlignmentVector,
    factored: dict[str, LowRank],
    out: Path,
    base: str | None,
    overwrite: bool,
) -> Path:
    """See llama.cpp's adapter format: `NAME.lora_a` [r, in] and `NAME.lora_b` [out, r]."""
    import gguf

    file = find_base(base or vector.base.id) / "config.json"
    config = checked(_Config, read_object(file), file)
    kind = config.model_type
    if kind not in _ARCHITECTURES:
        raise AlignvecError(
            f"gguf adapters are written for {', '.join(_ARCHITECTURES)}; this base is {kind}"
        )
    named = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(named[_ARCHITECTURES[kind]], config.layers)
    taken: set[str] = set()
    with write_file(out, overwrite) as partial:
        writer = gguf.GGUFWriter(partial, _ARCHITECTURES[kind])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(vector.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        rank = max(delta.rank for delta in factored.values())
        # llama.cpp scales by alpha / rank, the rank being that of each tensor.
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_string("alignvec.base", json.dumps(vars(vector.base)))
        for name, delta in factored.items():
            target = names.get_name(name, try_suffixes=(".weight",))
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
