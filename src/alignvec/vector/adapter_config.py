"""What a PEFT adapter's config says: how B A is scaled, and whether B A is all that it changes.

Every field of PEFT's LoraConfig is one of these: read here, of no weight for a finished adapter, or
refused by its name, as is a field that a later PEFT may add.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

import regex
import torch
from pydantic import BaseModel, ConfigDict, Field

from alignvec.base.weights import Weights
from alignvec.base.wrappers import unwrapped
from alignvec.errors import AlignvecError, one_line
from alignvec.files import read_object, validated

CONFIG = "adapter_config.json"
MERGE = "where PEFT can merge it into its base (merge_and_unload), save that and extract it"

# How training began; after these the base is what it was, and B A the whole change.
_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# Of how it was trained, or what the tensors show by themselves.
_WITHOUT_WEIGHT = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "bias", "lora_bias", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
_MORE_THAN_FACTORS = {
    "alora_invocation_tokens": "aLoRA acts only after these tokens, and no change of weights does",
    "layer_replication": "it is trained on a base with more layers",
    "use_qalora": "QA-LoRA's factors act on pooled inputs",
    "use_bdlora": "BD-LoRA's factors are blocks",
    "arrow_config": "Arrow chooses among adapters at every token",
    "kasa_config": "KaSA changes the base as well",
    "monteclora_config": "MonteCLoRA draws its factors at random",
}

_WITHIN = re.compile(r"(\.base_layer)+$")  # of one tensor of a module beside another
NEVER_ASKED = ".dt_proj"  # of Mamba, as it is on every path that reads its weight
_ALL_LINEAR = "all-linear"
_LAYER = r"(?:.*\.)?(?:{})\.\d+"  # a module's name up to the number of its layer
_PATIENCE = 10.0  # seconds for all of an adapter's patterns; milliseconds are usual
_UNROLLED = 4000  # characters of a pattern with its counted repeats written out
_Patterns = list[tuple[Any, float]]
_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]
_Token = Annotated[int, Field(ge=0)]


class _Fields(BaseModel):
    """What is read of the config."""

    model_config = ConfigDict(strict=True)

    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    init_lora_weights: bool | str | None = None
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    target_parameters: list[str] | None = None
    trainable_token_indices: list[_Token] | dict[str, list[_Token]] | None = None


class AdapterConfig:
    """`adapter_config.json` of a LoRA, rsLoRA or DoRA adapter.

    Attributes:
        file: where it lies, for messages.
        fields: what it says.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: AlignvecError: another kind of adapter, or one that is more than its factors."""
        self.file = folder / CONFIG
        content = read_object(self.file)
        kind = content.get("peft_type")
        if kind != "LORA":
            raise self.error("peft_type", f"{kind} is no LoRA adapter; {MERGE}")
        for field, why in _MORE_THAN_FACTORS.items():
            if content.get(field):
                raise self.error(field, f"{why}; {MERGE}")
        known = {*_Fields.model_fields, *_WITHOUT_WEIGHT, *_MORE_THAN_FACTORS}
        for field in content:
            if content[field] and field not in known:
                raise self.error(field, f"it is not known here, and may change weights; {MERGE}")
        self.fields = validated(_Fields, content, self.file)
        start = self.fields.init_lora_weights
        if start is not None and str(start).lower() not in _STARTS:
            raise self.error(
                "init_lora_weights",
                f"'{start}' changes the base at the start, so the factors are not the whole "
                "change; save the adapter with path_initial_model_for_weight_conversion, or, "
                "where it was trained, merge it into its base (merge_and_unload), save that and "
                "extract it",
            )
        # What may be a pattern is one only where it is no list.
        self._places = {
            field: _compiled(self.file, {said: 1}, "{}")
            for field in ("target_modules", "exclude_modules")
            if isinstance(said := getattr(self.fields, field), str) and said != _ALL_LINEAR
        }
        said = self.fields.layers_pattern or ()
        layers = [said] if isinstance(said, str) else said
        self._layers = _compiled(self.file, dict.fromkeys(layers or [r"[^.]*"], 1), _LAYER)
        self._ranks = _compiled(self.file, self.fields.rank_pattern)
        self._alphas = _compiled(self.file, self.fields.alpha_pattern)
        self._until = time.monotonic() + _PATIENCE

    def error(self, field: str, what: str) -> AlignvecError:
        """The refusal of a field."""
        return AlignvecError(f"{self.file}: field '{field}': {what}")

    def scaling(self, module: str, rank: int) -> float:
        """PEFT's factor on B A of a module or parameter: alpha / r, or alpha / sqrt(r) for rsLoRA.

        Raises:
            AlignvecError: the factors are not of the rank that the config gives them.
        """
        said = self._first(self._ranks, module, self.fields.r)
        if said != rank:
            field = "r" if said == self.fields.r else "rank_pattern"
            raise self.error(
                field, f"rank {said:g} for {module}, whose factors are of rank {rank}; set it right"
            )
        alpha = self._first(self._alphas, module, self.fields.lora_alpha)
        return float(alpha / (math.sqrt(rank) if self.fields.use_rslora else rank))

    def is_parameter(self, name: str) -> bool:
        """Whether PEFT was told to put factors on that very tensor."""
        return any(f".{name}".endswith(f".{one}") for one in self.fields.target_parameters or [])

    def left_out_by(self, module: str) -> str | None:
        """The field by which PEFT passes over the factors of a module; None if it takes them.

        Those of a tensor that `target_parameters` names are not to be asked of.
        """
        told = self.fields
        if self._names("exclude_modules", module):
            return "exclude_modules"
        if any(f".{name}." in f".{module}." for name in told.modules_to_save or []):
            return "modules_to_save"
        if told.target_modules is None or told.target_modules == _ALL_LINEAR:
            # By a table that PEFT has of models, or by the layers of the base.
            return "target_modules" if told.target_parameters else None
        if not self._names("target_modules", module):
            return "target_modules"
        if isinstance(told.target_modules, str) or module in told.target_modules:
            return None
        wanted = told.layers_to_transform
        layers = [wanted] if isinstance(wanted, int) else wanted or []
        return "layers_to_transform" if layers and self._layer(module) not in layers else None

    def _names(self, field: str, module: str) -> bool:
        """Whether a field has that module, as a whole or by the end of its name."""
        if field in self._places:
            return bool(self._first(self._places[field], module, 0))
        names = [unwrapped(name) for name in getattr(self.fields, field) or []]
        return any(f".{module}".endswith(f".{name}") for name in names)

    def _layer(self, module: str) -> int | None:
        """The number that PEFT takes for the layer's: the first one in the name."""
        for end in re.finditer(r"\.\d+(?=\.)", module):
            if self._first(self._layers, module[: end.end()], 0):
                return int(end[0][1:])
        return None

    def tokens(self, module: str) -> list[int]:
        """The rows of an embedding that were trained, in the order of their values."""
        said = self.fields.trainable_token_indices
        if isinstance(said, dict):
            return next((rows for name, rows in said.items() if module.endswith(name)), [])
        return said or []

    def saves(self, module: str) -> bool:
        """Whether PEFT trained a copy of that module and left the base's own as it was.

        It goes by the end of the name, be that a part of a word.
        """
        return any(module.endswith(name) for name in self.fields.modules_to_save or [])

    def _first(self, patterns: _Patterns, module: str, default: float) -> float:
        """The value of the first pattern that fits. It may be one that backtracks for ever."""
        for pattern, value in patterns:
            left = self._until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                if pattern.fullmatch(module, timeout=left):
                    return value
            except TimeoutError:
                raise AlignvecError(
                    f"{self.file}: its patterns take too long, at {pattern.pattern}"
                ) from None
        return default


def check_acts(
    config: AdapterConfig,
    base: Weights,
    module: str,
    live: str,
    factors: Mapping[str, torch.Tensor],
) -> None:
    """Factors that PEFT passes over are no change, whatever they hold.

    Raises:
        AlignvecError: PEFT would not ask them, by the config or by how the model is built.
    """
    known = base.architecture
    home = _WITHIN.sub("", live)
    as_told = any(
        config.is_parameter(name)
        for name in (base if known is None else known.live)
        if name.rpartition(".")[0] == home
    )
    tied = {*base.tied, *base.tied.values()} if config.fields.ensure_weight_tying else ()
    field = config.left_out_by(module)
    if field and config.left_out_by(live) and not as_told and f"{live}.weight" not in tied:
        raise config.error(
            field, f"by it PEFT passes over {module}, whose factors are there; set it right"
        )
    moved = live.endswith(NEVER_ASKED) and any(f.any() for n, f in factors.items() if "B" in n)
    if moved and known is not None and known.reads_past(live):
        raise AlignvecError(
            f"the adapter changes {live}, whose weight the model reads without calling the layer, "
            "so that PEFT's factors do nothing there; leave them out"
        )


def check_whole(
    config: AdapterConfig, base: Weights, whole: Collection[str], tokens: Collection[str]
) -> None:
    """What the config says was trained beside the factors has to be there; PEFT asks for it, too.

    Args:
        whole: the tensors that were trained whole.
        tokens: the embeddings of which rows were trained.

    Raises:
        AlignvecError: it is missing, or experts are in one tensor.
    """
    unknown = [name for name in whole if name not in base and name not in base.tied]
    packs = base.architecture.packs() if unknown and base.architecture is not None else {}
    if packed := [name for name in unknown if name in packs]:
        raise config.error(
            "modules_to_save",
            f"{packed[0]} holds experts in one tensor, which is not read; {MERGE}",
        )
    there = {*whole, *(base.tied[name] for name in whole if name in base.tied)}
    for name in base if config.fields.modules_to_save else ():
        parts = name.split(".")[:-1]
        owners = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        if name not in there and any(map(config.saves, owners)):
            raise config.error("modules_to_save", f"the trained copy of {name} is missing")
    said = config.fields.trainable_token_indices or {}
    by_name = said if isinstance(said, dict) else {"": said}
    # PEFT has the rows of a tied table once where they are the same ones of both.
    tied = {a.removesuffix(".weight"): b.removesuffix(".weight") for a, b in base.tied.items()}
    alike = [a for a, b in tied.items() if b in tokens and config.tokens(a) == config.tokens(b)]
    for name in (name for name, rows in by_name.items() if rows):
        if not any(module.endswith(name) for module in (*tokens, *alike)):
            raise config.error(
                "trainable_token_indices",
                f"the rows of {name or 'the embedding'} that were trained are missing",
            )


def _compiled(
    file: Path, patterns: Mapping[str, float] | None, within: str = r"(.*\.)?({})"
) -> _Patterns:
    """Expressions of Python's `re`, as PEFT reads them, for an engine that knows a timeout.

    That engine unrolls counted repeats, so a few characters might ask for all memory.
    """
    found = []
    for pattern, value in (patterns or {}).items():
        repeats = re.findall(r"\{(\d*),?(\d*)\}", pattern[:_UNROLLED])
        if len(pattern) * prod(int(most or least or 1) or 1 for least, most in repeats) > _UNROLLED:
            raise AlignvecError(f"{file}: pattern '{pattern}' is too large")
        try:
            text = re.compile(within.replace("{}", pattern)).pattern
            found.append((regex.compile(text), value))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise AlignvecError(f"{file}: pattern '{pattern}': {one_line(error)}") from None
    return found
