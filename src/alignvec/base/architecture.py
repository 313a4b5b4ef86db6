"""What transformers makes of a checkpoint: the weights of its model, by one name each.

The names of a file are not always those of the loaded model: GPT-2's files leave out
`transformer.`, Gemma 3's say `language_model.model.`, Pythia's call the head `embed_out`.
transformers renames them when it loads, and its own rules are used here, so that a weight has one
name wherever it comes from: that of the loaded model. Of weights that it packs together as well
(the experts of Mixtral are one tensor when loaded) each part keeps a name of its own, the file's
after the renaming.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    _MODEL_TO_CONVERSION_PATTERN,
    get_model_conversion_mapping,
)
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from alignvec.base.wrappers import unwrapped
from alignvec.errors import AlignvecError, printable
from alignvec.files import read_object

_PEFT_PACKS = {  # the layouts of experts in its conversion of adapters, and what it finds them by
    "mixtral": ("w1", "w2", "w3"),
    "qwen2_moe": ("gate_proj", "up_proj", "down_proj"),
}
_COMPUTES = (
    "model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "hidden_act",
    "hidden_activation", "activation_function", "sliding_window", "layer_types",
    "num_experts_per_tok", "attn_logit_softcapping", "final_logit_softcapping",
    "query_pre_attn_scalar", "logit_scale", "logits_scaling", "embedding_multiplier",
    "residual_multiplier", "attention_multiplier",
)  # fmt: skip
_MANY = 10_000  # layers, experts, labels: more than any language model has


class Architecture:
    """The names, shapes and ties of a model's weights; nothing is read.

    Attributes:
        shapes: name -> shape, of parameters and of the buffers that are saved. A tied tensor is
            there under each of its names.
        tied: name -> the name of the tensor that it shares unless a file has another for it.
        transposed: the weights stored as [in, out]: those of transformers' Conv1D, as in GPT-2.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Args: model: loaded, or on the meta device."""
        self._model = model
        self._transforms = get_model_conversion_mapping(model)
        self.live: Mapping[str, torch.Tensor] = {
            unwrapped(name): value for name, value in model.state_dict(keep_vars=True).items()
        }
        self.shapes = {
            name: tuple(value.shape) for name, value in self.unpacked(_on_meta(self.live)).items()
        }
        self.tied = {
            target: source
            for target, source in model.all_tied_weights_keys.items()
            if target in self.live and self.live[target] is self.live.get(source)
        }
        self.transposed = frozenset(
            unwrapped(f"{name}.weight")
            for name, module in model.named_modules()
            if isinstance(module, Conv1D)
        )

    @property
    def computes(self) -> dict[str, Any]:
        """The fields of the config that say what is made of the same weights."""
        config: Any = self._model.config.get_text_config()
        told = {name: getattr(config, name, None) for name in _COMPUTES}
        told["model_type"] = str(told["model_type"]).removesuffix("_text")
        heads, width = told["num_attention_heads"], getattr(config, "hidden_size", None)
        told["num_key_value_heads"] = told["num_key_value_heads"] or heads
        if isinstance(heads, int) and isinstance(width, int):
            told["head_dim"] = told["head_dim"] or width // heads
        return {name: value for name, value in told.items() if value is not None}

    @classmethod
    def of_checkpoint(cls, folder: Path, stored: Iterable[str]) -> Architecture | None:
        """Of the model that `folder` holds: a causal one, else the one that its config names.

        Args:
            stored: the names in its files, to tell a model without a head from a damaged one.

        Returns:
            None where transformers cannot build it, as with code of its own.
        """
        found: list[Architecture] = []
        for model in _candidates(folder):
            found.append(cls(model))
            if not found[-1].missing(found[-1].names(stored).values()):
                return found[-1]
        return found[0] if found else None

    def names(self, stored: Iterable[str]) -> dict[str, str]:
        """The name of each tensor of a file, by its name there; those not of the model are absent.

        As transformers renames them when it loads. What wrappers put before a name is taken off.
        """
        renamings = [t for t in self._fresh() if isinstance(t, WeightRenaming)]
        converters = [t for t in self._fresh() if isinstance(t, WeightConverter)]
        prefix = self._model.base_model_prefix
        found: dict[str, str] = {}
        for key in sorted(stored, key=dot_natural_key):
            bare = unwrapped(key)
            live, packed = rename_source_key(bare, renamings, converters, prefix, self.live)
            if live not in self.live and bare in self.live:
                live, packed = rename_source_key(bare, [], [], prefix, self.live)
            if live not in self.live:
                continue
            name = live
            if packed is not None:
                name, _ = rename_source_key(bare, renamings, [])
                if name not in self.shapes:
                    name = f"{prefix}.{name}" if f"{prefix}.{name}" in self.shapes else name
            found[key] = name
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        """The parameters of the model that are not among `names`, nor tied to one that is."""
        there = set(names)
        there |= {target for target, source in self.tied.items() if source in there}
        there |= {source for target, source in self.tied.items() if target in there}
        buffers = {unwrapped(name) for name, _ in self._model.named_buffers()}
        ignored = self._model._keys_to_ignore_on_load_missing or []
        return [
            name
            for name in self.shapes
            if name not in there
            and name not in buffers
            and not any(re.search(pattern, name) for pattern in ignored)
        ]

    def unpacked(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by the names of the loaded model, as the parts that files hold."""
        converters = [t for t in self._fresh() if isinstance(t, WeightConverter)]
        if not converters:
            return dict(tensors)
        model: Any = copy.copy(self._model)
        model._weight_conversions = converters
        parts: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(tensors))
        return parts

    def packed(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parts as the tensors of the loaded model; a part that is absent counts as zero.

        Raises:
            KeyError: one is not a part of the model.
        """
        converters = [t for t in self._fresh() if isinstance(t, WeightConverter)]
        by_pattern = {pattern: t for t in converters for pattern in t.source_patterns}
        found: dict[str, torch.Tensor] = {}
        pending = dict(parts)
        for home, members in self.packs().items():
            if not any(name in pending for name, _ in members):
                continue
            converter: Any = copy.deepcopy(by_pattern[members[0][1]])
            like = next(pending[name] for name, _ in members if name in pending)
            for name, pattern in members:
                part = pending.pop(name, None)
                part = like.new_zeros(self.shapes[name]) if part is None else part
                converter.add_tensor(home, name, pattern, part)
            made = converter.convert(home, model=self._model, config=self._model.config)
            found |= {name: value[0] if isinstance(value, list) else value
                      for name, value in made.items()}  # fmt: skip
        for name, part in pending.items():
            if name not in self.live:
                raise KeyError(name)
            found[name] = part
        return found

    def packs(self) -> dict[str, list[tuple[str, str]]]:
        """Tensor of the loaded model -> the names of its parts, with the pattern that fits each.

        Of one that becomes several when it is loaded, the first of these stands for all.
        """
        converters = [t for t in self._fresh() if isinstance(t, WeightConverter)]
        found: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(self.shapes, key=dot_natural_key):
            home, pattern = rename_source_key(name, [], converters)
            if pattern is not None and home in self.live:
                found.setdefault(home, []).append((name, pattern))
        return found

    def is_linear(self, module: str) -> bool:
        """Whether a module is a linear layer, and no other thing that has a matrix: it makes a
        tensor of a tensor, as some routers of that class do not.
        """
        layer = self._model.get_submodule(module)
        if not isinstance(layer, torch.nn.Linear | Conv1D):
            return False
        width = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
        with torch.no_grad():
            return isinstance(layer(layer.weight.new_zeros(1, width)), torch.Tensor)

    def stores_experts_in_out(self, module: str) -> bool:
        """Whether a module holds the weights of its experts as [E, in, out]."""
        return bool(getattr(self._model.get_submodule(module), "is_transposed", False))

    def reads_past(self, module: str) -> bool:
        """Whether the layer above takes a module's weight itself, at least at times.

        As those of Mamba do with their `dt_proj`, and with `out_proj` where they have kernels for
        it: neither hooks nor PEFT's factors are asked then.
        """
        above, _, part = module.rpartition(".")
        if f"{module}.weight" not in self.live:
            return False
        source = inspect.getsource(type(self._model.get_submodule(above)))
        taken = rf"self\.{re.escape(part)}\.weight\b(?!\.(dtype|device|shape|ndim|size))"
        return re.search(taken, source) is not None

    @property
    def experts_known_to_peft(self) -> bool:
        """Whether PEFT packs an adapter's factors of experts as transformers packs the weights."""
        return self._packed_by_peft in _PEFT_PACKS

    def peft_takes(self, module: str) -> bool:
        """Whether PEFT puts factors on a module that may be a router: a linear layer, or one that
        it knows to hold a parameter.
        """
        known = self.experts_known_to_peft and module.endswith(".gate")
        return known or self.is_linear(module)

    def peft_takes_for_expert(self, module: str) -> bool:
        """Whether PEFT takes a linear layer beside the experts, of a dense or a shared MLP, for one
        of theirs where it stands among `target_modules`: it goes by the end of the name.
        """
        parts = _PEFT_PACKS.get(self._packed_by_peft, ())
        named = module.rpartition(".")[2] in parts and f"{module}.weight" in self.live
        return named and self.is_linear(module)

    @property
    def _packed_by_peft(self) -> str:
        kind = str(self._model.config.model_type)
        return kind if kind == "mixtral" else _MODEL_TO_CONVERSION_PATTERN.get(kind, "")

    def _fresh(self) -> list[Any]:
        """Copies: some transforms remember what they have seen."""
        return copy.deepcopy(self._transforms)


def _on_meta(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}


def _candidates(folder: Path) -> Iterator[PreTrainedModel]:
    file = folder / "config.json"
    if not file.exists() or any(count > _MANY for count in _counts(read_object(file))):
        return
    with quiet():
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception:  # none that transformers knows: one of a dozen types
            return
        told = config.architectures if isinstance(config.architectures, list) else []
        named = (getattr(transformers, name, None) for name in told if isinstance(name, str))
        for kind in (AutoModelForCausalLM, *named):
            build: Any = getattr(kind, "from_config", getattr(kind, "_from_config", None))
            try:
                with torch.device("meta"):
                    model = build(config)
            except Exception:  # not of this kind, or not to be built
                continue
            if isinstance(model, PreTrainedModel):
                yield model


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own reports; what is wrong is refused in one line."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def writer_of_text(config: PreTrainedConfig) -> Any:
    """The auto class that loads a model which writes text, whatever else it reads.

    Raises:
        AlignvecError: transformers has no such model for this config.
    """
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping and not config.is_encoder_decoder:
            return kind
    raise AlignvecError(
        f"its model_type is {printable(str(config.model_type))}, and that is no language model "
        "that continues a text"
    )


def _counts(value: Any) -> Iterator[int]:
    """What a config says there are so and so many of; building them all might take for ever."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, int) and re.search("layer|expert|block|depth|label", str(key)):
                yield inner
            else:
                yield from _counts(inner)
