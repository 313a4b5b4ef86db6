"""Which vector: by its values, or by what it is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch

from alignvec.base.weights import Weights, tensor_bytes
from alignvec.vector.delta import Delta, Dense, Lazy, LowRank, parts


def content_hash(deltas: Mapping[str, Delta]) -> str:
    """A hash of every value, in memory or not: it reads the whole of them."""
    return _hash({name: _content(delta) for name, delta in deltas.items()})


def origin_hash(deltas: Mapping[str, Delta]) -> str:
    """A hash of what they are made from: quick, since of files it is their state.

    Equal ones are the same vector; the same vector read from elsewhere has another one.
    """
    return _hash({name: _origin(delta) for name, delta in deltas.items()})


def _hash(each: Mapping[str, str]) -> str:
    text = "".join(f"{name}\n{one}\n" for name, one in sorted(each.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _origin(delta: Delta) -> str:
    if not isinstance(delta, Lazy) or not delta.origin:
        return _content(delta)
    return " ".join(map(_word, delta.origin))


def _word(part: str | Weights | Delta) -> str:
    if isinstance(part, Delta):
        return f"({_origin(part)})"
    return part.state if isinstance(part, Weights) else part


def _content(delta: Delta) -> str:
    digest = hashlib.sha256(f"{tuple(delta.shape)}".encode())
    for tensor in _tensors(delta):
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _tensors(delta: Delta) -> Iterator[torch.Tensor]:
    """What a delta consists of, the same whether it is in memory or yet to be read."""
    if isinstance(delta, LowRank):
        yield torch.tensor([delta.rank, delta.transposed])
        yield from (delta.a.float(), delta.b.float())
        return
    residuals: list[torch.Tensor] = []
    for start, stop in parts(delta.shape):
        part = delta.part(start, stop)
        yield part.dense()
        if isinstance(part, Dense) and part.residual is not None:
            indices = part.residual.indices().clone()
            indices[0] += start
            residuals += [indices, part.residual.values()]
    yield from residuals
