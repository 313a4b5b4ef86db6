"""What works for which family of models, found out by trying; the table of docs/families.md.

    python benchmarks/families.py -o benchmarks/results/families.json

A tiny random model of each family, a fine-tune of all weights that a text passes, and a LoRA
adapter that PEFT put on the linear layers. A cell is "exact" if the logits are those that
transformers or PEFT compute, and otherwise the line that refused. `tests/test_families.py` finds
every cell out again.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.pytorch_utils import Conv1D

from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.files import write_json
from alignvec.knobs.gate import Gate
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.export import export
from alignvec.vector.fold import fold
from provenance import made

_SIZE = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_HEAD = {**_SIZE, "head_dim": 8}
_PLAIN = {name: value for name, value in _SIZE.items() if name != "num_key_value_heads"}
# Family -> transformers' name of it, and the sizes of a tiny one.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {**_SIZE, "tie_word_embeddings": False}),
    "Mistral": ("mistral", _SIZE),
    "Qwen3": ("qwen3", _HEAD),
    "Gemma 3": ("gemma3_text", _HEAD),
    "GPT-2": (
        "gpt2",
        {"vocab_size": 112, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "GPT-NeoX": ("gpt_neox", _PLAIN),
    "Phi": ("phi", _SIZE),
    "Falcon": ("falcon", {**_PLAIN, "new_decoder_architecture": False, "multi_query": True}),
    "Mixtral": ("mixtral", {**_SIZE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Mamba-2": (
        "mamba2",
        {"vocab_size": 112, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8,
         "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "RecurrentGemma": (
        "recurrent_gemma",
        {**_HEAD, "lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3},
    ),
    "Gemma 3 with images": (
        "gemma3",
        {
            "text_config": _HEAD,
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            },
            "mm_tokens_per_image": 1, "image_token_index": 100, "boi_token_index": 101,
            "eoi_token_index": 102,
        },
    ),
}  # fmt: skip
WAYS = ("extract", "fold", "live fold", "gate", "PEFT in", "PEFT out", "GGUF out")
_IDS = torch.tensor([[1, 40, 55, 62, 71, 33, 90, 48, 77, 65, 52, 84]])
_BY = 0.7
_NEW = 6  # tokens that are generated one by one, so that a state or a cache is in use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--family", action="append", choices=[*FAMILIES])
    options = parser.parse_args()
    found = {}
    for family in options.family or FAMILIES:
        found[family] = cells(family)
        print(family, json.dumps(found[family], indent=2), flush=True)
    write_json(options.out, {"cells": found, "made": made()})


def cells(family: str) -> dict[str, str]:
    """Way -> "exact", or the line that refused it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = Trial(Path(folder), *FAMILIES[family])
        return {way: outcome(check, Path(folder)) for way, check in tried.ways()}


def outcome(check: Callable[[], bool], folder: Path) -> str:
    try:
        return "exact" if check() else "WRONG"
    except AlignvecError as error:
        return str(error).replace(f"{folder}/", "")


@dataclass
class Trial:
    """One family: its base, a fine-tune, an adapter, and what alignvec makes of them."""

    folder: Path
    kind: str
    sizes: dict[str, Any]

    def ways(self) -> Iterator[tuple[str, Callable[[], bool]]]:
        checks = (self.extract, self.fold, self.live_fold, self.gate, self.peft_in, self.peft_out,
                  self.gguf_out)  # fmt: skip
        return zip(WAYS, checks, strict=True)

    @cached_property
    def base(self) -> Path:
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, **self.sizes)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.ndim > 1 else 1)  # logits far enough apart
        return self._saved(model, "base")

    @cached_property
    def aligned(self) -> Path:
        model = self._loaded(self.base)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not re.search("vision|multi_modal", name):  # a text does not pass there
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return self._saved(model, "aligned")

    @cached_property
    def adapter(self) -> Path:
        """On all linear layers of the decoder, experts too, by plain PEFT."""
        torch.manual_seed(2)
        model = self._loaded(self.base)
        experts = [
            name.partition(".mlp.")[2]
            for name, parameter in model.named_parameters()
            if parameter.ndim == 3 and ".mlp.experts." in name
        ]
        targets = sorted(
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
            and "layers." in f"{name}.".replace(".h.", ".layers.")
            and "vision" not in name
            and not (name.endswith("out_proj") and "mamba" in self.kind)  # PEFT refuses it
        )
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=targets,
                target_parameters=sorted(set(experts)) or None,
                task_type="CAUSAL_LM",
            ),
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(self.folder / "adapter")
        return self.folder / "adapter"

    @cached_property
    def tau(self) -> AlignmentVector:
        return AlignmentVector.extract(self.base, self.aligned).in_memory()

    @cached_property
    def factors(self) -> AlignmentVector:
        return AlignmentVector.extract(self.base, self.adapter)

    def extract(self) -> bool:
        """theta + tau is theta', bit for bit."""
        fold(self.base, [(self.tau, 1.0)], self.folder / "whole")
        found, wanted = (
            self._loaded(f).state_dict() for f in (self.folder / "whole", self.aligned)
        )
        return all(torch.equal(found[name], wanted[name]) for name in wanted)

    def fold(self) -> bool:
        fold(self.base, [(self.tau, _BY)], self.folder / "folded")
        return same(logits(self._loaded(self.folder / "folded")), logits(self._between(_BY)))

    def live_fold(self) -> bool:
        from alignvec.knobs.fold import Fold

        model = self._loaded(self.base)
        Fold(model, {"k": self.tau}).set({"k": _BY})
        return same(logits(model), logits(self._between(_BY)))

    def gate(self) -> bool:
        """Two rows of other strengths, in one pass and token by token."""
        strengths = (_BY, -0.5)
        model = self._loaded(self.base)
        gate = Gate(model, {"k": self.tau})
        with gate.rows(torch.tensor([[by] for by in strengths])):
            together, steps = logits(model, 2), generated(model, 2)
        for row, by in enumerate(strengths):
            alone = self._between(by)
            right = same(together[row], logits(alone)[0]) and same(
                steps[row], generated(alone, 1)[0]
            )
            if not right:
                return False
        return True

    def peft_in(self) -> bool:
        fold(self.base, [(self.factors, 1.0)], self.folder / "with-adapter")
        return same(logits(self._loaded(self.folder / "with-adapter")), self._through(self.adapter))

    def peft_out(self) -> bool:
        out = export(self.factors, "peft", self.folder / "peft", str(self.base))
        fold(self.base, [(self.factors, 1.0)], self.folder / "with-factors")
        return same(self._through(out), logits(self._loaded(self.folder / "with-factors")))

    def gguf_out(self) -> bool:
        """Read back by transformers' rules for llama.cpp's names and order of rows."""
        out = export(self.factors, "gguf", self.folder / "lora.gguf", str(self.base))
        model = self._loaded(self.base)
        reader = gguf.GGUFReader(out)
        kind = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
        alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents()
        processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=model.config.to_dict())
        names = get_gguf_hf_weights_map(model, processor, model_type=kind)
        parameters = dict(model.named_parameters())
        read = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        for key, a in read.items():
            name, _, factor = key.rpartition(".")
            if factor == "lora_a":
                b = read[f"{name}.lora_b"]
                change = processor.process((alpha / len(a) * b @ a).numpy(), name).weights
                with torch.no_grad():
                    parameters[names[name]].add_(torch.from_numpy(change.copy()))
        return same(logits(model), self._through(self.adapter))

    def _between(self, by: float) -> PreTrainedModel:
        """theta + by (theta' - theta), by plain arithmetic on what transformers loads."""
        model, aligned = self._loaded(self.base), self._loaded(self.aligned).state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(by * (aligned[name] - parameter))
        return model

    def _through(self, adapter: Path) -> torch.Tensor:
        return logits(PeftModel.from_pretrained(self._loaded(self.base), adapter).eval())

    def _saved(self, model: PreTrainedModel, name: str) -> Path:
        model.save_pretrained(self.folder / name)
        return self.folder / name

    def _loaded(self, folder: Path) -> PreTrainedModel:
        return load_checkpoint(folder, torch.float32)


def logits(model: Any, rows: int = 1) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(_IDS.repeat(rows, 1)).logits
    return found


def generated(model: Any, rows: int) -> torch.Tensor:
    """[rows, steps, vocabulary]: logits of a few tokens, one by one."""
    with torch.no_grad():
        out = model.generate(
            _IDS.repeat(rows, 1), max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return torch.stack(out.logits, 1)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for the order of float32 sums."""
    return bool(torch.allclose(found, wanted, atol=1e-3, rtol=1e-3))


if __name__ == "__main__":
    main()
