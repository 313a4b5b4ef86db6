"""The scaled rotary positions of a GGUF file, which transformers reads as if they were plain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from alignvec.errors import AlignvecError, printable

FACTORS = "rope_freqs.weight"  # what llama.cpp divides each frequency by
# Of every Llama from 3.1 on; only by how much the lowest frequencies are divided differs.
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_EXACT = 1e-4  # of a frequency: both sides compute in float32


def restore_scaling(file: Path, model: Any, told: Mapping[str, Any], factors: Any) -> None:
    """Put the scaling of a file into its model's config.

    Args:
        told: the file's metadata.
        factors: [head size / 2], the tensor `FACTORS`; None where transformers read it or there is
            none.

    Raises:
        AlignvecError: it is none that can be told exactly.
    """
    # Gemma 3 scales those of its full layers alone; GPT-2 has none.
    every = getattr(model.config, "rope_parameters", None) or {}
    positions = every.get("full_attention", every)
    if factors is not None:
        plain, divided = model.base_model.rotary_emb.inv_freq, torch.from_numpy(factors.copy())
        positions |= {**_LLAMA_3, "factor": float(divided.max())}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, plain.device)
        alike = plain.shape == divided.shape
        if not alike or not torch.allclose(scaled, plain / divided, rtol=_EXACT, atol=0):
            raise _unknown(file, f"by {FACTORS} otherwise than those of Llama 3")
    prefix = f"{told['general.architecture']}.rope.scaling"
    kind, by = told.get(f"{prefix}.type", "none"), told.get(f"{prefix}.factor", 1.0)
    if kind == "linear" and factors is None:
        positions |= {"rope_type": "linear", "factor": float(by) or 1.0}
    elif kind not in ("none", positions.get("rope_type")):
        raise _unknown(file, f"by {printable(str(kind))}")


def _unknown(file: Path, how: str) -> AlignvecError:
    return AlignvecError(
        f"{file}: its rotary positions are scaled {how}, which is not read; give the model as "
        "safetensors"
    )
