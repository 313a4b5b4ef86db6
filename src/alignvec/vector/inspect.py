"""What a vector holds: norms by layer and module, and how several vectors relate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from alignvec.errors import AlignvecError
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank, parts

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d{1,9})\.(.+)")


def inspect(vector: AlignmentVector) -> dict[str, Any]:
    """A summary that goes into JSON as it is.

    Returns:
        name, kind, dtype, base, tensors, parameters (weights that change), rank, energy (share of
        the squared norm that is left of what was compressed), norm, and `norms`:
        module -> layer -> norm of its delta; what lies outside the layers is at layer "-".
    """
    norms: dict[str, dict[str, float]] = {}
    squares: dict[tuple[str, str], float] = {}
    compressed, lost = False, 0.0  # squared norm that compression took away
    for name, delta in vector.deltas.items():
        match = _LAYER.search(name)
        layer, module = (match[1], match[2]) if match else ("-", name)
        # The experts of a layer are one module.
        module = re.sub(r"\.\d+\.", ".*.", module.removesuffix(".weight"))
        square = delta.dot(delta)
        if not math.isfinite(square):
            raise AlignvecError(f"'{vector.name}': {name} holds NaN or infinity")
        squares[module, layer] = squares.get((module, layer), 0.0) + square
        if isinstance(delta, LowRank) and delta.energy:
            compressed, lost = True, lost + square * (1 / delta.energy - 1)
    for (module, layer), square in squares.items():
        norms.setdefault(module, {})[layer] = math.sqrt(max(0.0, square))
    total = sum(squares.values())
    ranks = [delta.rank for delta in vector.deltas.values() if isinstance(delta, LowRank)]
    return {
        "name": vector.name,
        "kind": vector.kind,
        "dtype": str(vector.dtype).removeprefix("torch."),
        "base": {"id": vector.base.id, "fingerprint": vector.base.fingerprint},
        "tensors": len(vector.deltas),
        "parameters": sum(delta.shape.numel() for delta in vector.deltas.values()),
        "rank": max(ranks, default=None),
        "energy": total / (total + lost) if compressed and total else None,
        "norm": math.sqrt(max(0.0, total)),
        "norms": norms,
        "training": {
            key: vector.training[key]
            for key in ("data", "domain", "prefer", "pairs", "formula")
            if key in vector.training
        },
    }


def compare(vectors: Mapping[str, AlignmentVector]) -> dict[str, Any]:
    """Cosines and sign conflicts between vectors of one base.

    Returns:
        `cosine` and `sign_conflict`, each name -> name -> value; None for the cosine with a vector
        that is empty. A sign conflict is the share of
        the weights that both change in which they pull in opposite directions: 0.5 by chance.
    """
    names = list(vectors)
    cosine = {a: {b: _cosine(vectors[a], vectors[b]) for b in names} for a in names}
    conflict = {a: {b: _sign_conflict(vectors[a], vectors[b]) for b in names} for a in names}
    return {"cosine": cosine, "sign_conflict": conflict}


def _cosine(one: AlignmentVector, other: AlignmentVector) -> float | None:
    cosine = one.cosine(other)
    return None if math.isnan(cosine) else cosine


def _sign_conflict(one: AlignmentVector, other: AlignmentVector) -> float:
    opposite = both = 0
    for name in one.deltas.keys() & other.deltas.keys():
        for start, stop in parts(one.deltas[name].shape):
            signs = [v.deltas[name].part(start, stop).dense().sign() for v in (one, other)]
            product = signs[0] * signs[1]
            opposite += int((product < 0).sum())
            both += int((product != 0).sum())
    return opposite / both if both else 0.0
