"""All knobs of an engine as one low-rank adapter, their factors side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import cache_folder, find_folder, is_adapter
from alignvec.errors import AlignvecError, one_line
from alignvec.files import atomic_folder, hash_of, read_object
from alignvec.vector.adapter import write_adapter
from alignvec.vector.alignment_vector import AlignmentVector, as_vector
from alignvec.vector.delta import LowRank
from alignvec.vector.experts import completed, of_experts

logger = logging.getLogger("vllm.alignvec")  # vLLM shows what is logged below its own name

# Where vLLM has no adapter that this way could gate: its kernels for experts go past the product,
# and tokens' embeddings and logits have slots of their own.
_EXPERTS = ".experts."
_NOT_HELD = {
    _EXPERTS: "vLLM's kernels for experts cannot be gated; serve it through names of models "
    "(ALIGNVEC_WAY=resolver)",
    "embed_tokens.": "it is no linear layer; fold the vector",
    "lm_head.": "its adapters are not gated; fold the vector",
}


@dataclass(frozen=True)
class Bank:
    """Vectors that fit a base, and how they lie in its adapter.

    Attributes:
        vectors: by knob, the knobs in the order of their names.
        ranks: columns of each knob, the highest rank among its tensors.
        rank: of the adapter: the sum, rounded up to one that vLLM has slots for.
        weights: of the base.
    """

    vectors: Mapping[str, AlignmentVector]
    ranks: Mapping[str, int]
    rank: int
    weights: ModelWeights

    @classmethod
    def of(
        cls,
        base: str,
        sources: Mapping[str, str | AlignmentVector],
        allowed: Sequence[int],
        check_base: bool = True,
        gated: bool = True,
    ) -> Bank:
        """The vectors at `sources`, by knob, on `base`; plain LoRA adapters are vectors, too.

        Args:
            base: folder or hub id of what the engine loads, perhaps quantised.
            allowed: ranks that vLLM has slots for.
            check_base: whether a base that is not a vector's own is refused.
            gated: whether each request turns them, which experts cannot follow.

        Raises:
            AlignvecError: one cannot be read, does not fit the base, is not wholly of low rank
                (by the tensor's name), or all together are of a higher rank than vLLM takes.
        """
        weights = ModelWeights(find_folder(base))
        vectors = {
            knob: _held(
                knob,
                _vector(knob, source, base).fitted(weights, base, check_base),
                gated,
            )
            for knob, source in sorted(sources.items())
        }
        ranks = {
            knob: max(delta.rank for delta in vector.deltas.values() if isinstance(delta, LowRank))
            for knob, vector in vectors.items()
        }
        rank = next((one for one in sorted(allowed) if one >= sum(ranks.values())), None)
        if rank is None:
            raise AlignvecError(
                f"the knobs together are of rank {sum(ranks.values())}, and vLLM takes "
                f"{max(allowed)} at most; alignvec compress VECTOR --rank R makes them smaller"
            )
        return cls(vectors, ranks, rank, weights)

    @property
    def columns(self) -> list[int]:
        """Of each column of the adapter the number of its knob; the rest, which is empty, has 0."""
        numbers = [number for number, rank in enumerate(self.ranks.values()) for _ in range(rank)]
        return numbers + [0] * (self.rank - len(numbers))

    @property
    def tensors(self) -> set[str]:
        """All that a knob changes, by the names of the base."""
        return {name for vector in self.vectors.values() for name in vector.deltas}

    def write(self) -> Path:
        """The adapter as a folder that vLLM loads, in the cache; once for the same vectors."""
        prints = {
            knob: (vector.fingerprint(), vector.calibration)
            for knob, vector in self.vectors.items()
        }
        folder = cache_folder() / "vllm" / hash_of("side by side, as filed", prints, self.rank)[:16]
        if (folder / "adapter_model.safetensors").exists():
            return folder
        dtypes = {vector.dtype for vector in self.vectors.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        try:
            with atomic_folder(folder, overwrite=True) as partial:
                self.write_to(partial, self.side_by_side(), dtype)
        except OSError as error:
            raise AlignvecError(
                f"the knobs' adapter cannot be written to {folder}: {one_line(error)}; "
                "ALIGNVEC_CACHE names another place"
            ) from error
        return folder

    def write_to(self, folder: Path, factored: dict[str, LowRank], dtype: torch.dtype) -> None:
        """An adapter with the names that the base's files have, which are those that vLLM knows."""
        known = self.weights.architecture
        if of_experts(factored) and known is not None:
            factored = completed(known, factored)
        filed = {name: key for key, name in self.weights.name_of.items()}
        named = {filed.get(name, name): delta for name, delta in factored.items()}
        write_adapter(folder, next(iter(self.vectors.values())).base.id, named, dtype)

    def side_by_side(self) -> dict[str, LowRank]:
        """By tensor: A [rank, in] and B [out, rank], the factors of each knob in its columns and
        zeros where it has none.
        """
        found: dict[str, dict[str, LowRank]] = {}
        for knob, vector in self.vectors.items():
            for name, delta in vector.deltas.items():
                assert isinstance(delta, LowRank)
                found.setdefault(name, {})[knob] = delta
        return {name: self._joined(by_knob) for name, by_knob in found.items()}

    def _joined(self, by_knob: Mapping[str, LowRank]) -> LowRank:
        one = next(iter(by_knob.values()))
        a = torch.zeros(self.rank, one.a.shape[1])
        b = torch.zeros(one.b.shape[0], self.rank)
        start = 0
        for knob, rank in self.ranks.items():
            if knob in by_knob:
                delta = by_knob[knob]
                a[start : start + delta.rank] = delta.a.float()
                b[:, start : start + delta.rank] = delta.b.float()
            start += rank
        return LowRank(a, b, one.transposed)

    def to_json(self) -> dict[str, Any]:
        """What the workers of an engine have to know."""
        used = sum(self.ranks.values())
        return {
            "knobs": list(self.vectors), "columns": self.columns, "used": used, "rank": self.rank,
        }  # fmt: skip


def _vector(knob: str, source: str | AlignmentVector, base: str) -> AlignmentVector:
    """The vector of a folder or a hub id, or that of a PEFT adapter which was trained on `base`."""
    if isinstance(source, str) and (folder := Path(source)).is_dir() and is_adapter(folder):
        name = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        if Path(str(name)).name != Path(base).name:
            logger.warning(
                "knob '%s': the adapter says that it was trained on %s, and this is %s; only its "
                "shapes are compared", knob, name, base,
            )  # fmt: skip
        return AlignmentVector.extract(base, folder, knob)
    return as_vector(source)


def _held(knob: str, vector: AlignmentVector, gated: bool) -> AlignmentVector:
    """The vector, if vLLM's slots hold all of it, and where it is gated its products can be."""
    for name, delta in vector.deltas.items():
        if not isinstance(delta, LowRank):
            raise AlignvecError(
                f"knob '{knob}': {name} is dense, and vLLM's slots hold low-rank factors; first: "
                "alignvec compress VECTOR --rank 16 --drop-rest -o OUT; or fold it (alignvec serve "
                f"--engine vllm --fold {knob}=1)"
            )
        for part, why in _NOT_HELD.items():
            if part in f".{name}" and (gated or part != _EXPERTS):
                raise AlignvecError(f"knob '{knob}' changes {name}: {why}")
    if not vector.deltas:
        raise AlignvecError(f"knob '{knob}' changes nothing: the vector is empty")
    return vector
