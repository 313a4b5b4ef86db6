"""Where the knobs of a bank look: at what the texts of their own records have and others have not.

A knob adds B A x to what a layer makes of its input x, whosever text that is. From random
directions A it moves the records of the other knobs as far as its own, and has to unlearn it. So in
a bank each direction a of a knob is one of those with the largest

    a^T C_own a / a^T (C_other + e I) a

where C = E[x x^T] over the tokens of its own texts, and over those of the other knobs and of
everyday questions: generalised eigenvectors. They stay (as in LoRA-FA, arXiv 2308.03303), and what
B learns reaches other texts only as far as these have the directions. Second moments of inputs
place adapters in CorDA (arXiv 2406.05223), too, and edits in AlphaEdit (arXiv 2410.02355).

They are few. A layer's inputs have a direction or two in which a domain differs from the others;
the next ones tell apart the texts that were looked at, and hardly any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from alignvec.align.bank import Bank
from alignvec.align.pairs import TokenPair
from alignvec.align.settings import RANK
from alignvec.base.logprobs import Tokens
from alignvec.progress import progress

_TEXTS = 96  # of a knob; of everyday questions as many
_RIDGE = 0.01  # of the mean of C_other's diagonal: a direction that no text has is no direction
_ROUNDS = 30  # of the power iteration
_AT_ONCE = 2**29  # numbers of moments that are held, 2 GiB


def texts_by_knob(pairs: Iterable[TokenPair]) -> dict[str, list[Tokens]]:
    """Knob -> some texts that it answers for, each once; under '' those that none does."""
    found: dict[str, dict[tuple[int, ...], None]] = {}
    for one in pairs:
        some = found.setdefault(one.pair.knob, {})
        if len(some) < _TEXTS:
            some[(*one.prompt, *one.chosen)] = None
    return {knob: list(some) for knob, some in found.items()}


def aim(bank: Bank, texts: Mapping[str, Sequence[Tokens]], longest: int) -> None:
    """Turn the directions of the knobs that have `texts` to these, and keep all directions there.

    Args:
        texts: see `texts_by_knob`; of two knobs at least.
        longest: tokens of a text; what is longer is cut.
    """
    portions = list(_portions(bank.layers, len(texts)))
    reads = len(portions) * sum(map(len, texts.values()))
    training = bank.model.training
    bank.model.eval()
    with (
        progress("aiming", "text", reads) as bar,
        torch.no_grad(),
        bank.model.disable_adapter(),
    ):
        for layers in portions:
            moments = {
                knob: _moments(bank.model, layers, [text[:longest] for text in some], bar)
                for knob, some in texts.items()
            }
            alike = defaultdict(list)
            for name in layers:
                alike[tuple(id(found.get(name)) for found in moments.values())].append(name)
            for names in alike.values():
                # What is no number the loss will tell.
                own = {
                    knob: found[names[0]]
                    for knob, found in moments.items()
                    if names[0] in found and found[names[0]].isfinite().all()
                }
                for knob in own.keys() - {""}:
                    if others := [other for of, other in own.items() if of != knob]:
                        directions = _directions(own[knob], others, bank.rank(knob))
                        for name in names:
                            bank.look(knob, name, directions)
    bank.model.train(training)
    bank.keep_directions()


def _portions(layers: Mapping[str, Any], groups: int) -> Iterator[dict[str, Any]]:
    """Layers, so many at a time that the moments of their inputs find room."""
    some: dict[str, Any] = {}
    room = _AT_ONCE
    for name, layer in layers.items():
        size = groups * layer.in_features**2
        if some and size > room:
            yield some
            some, room = {}, _AT_ONCE
        some[name] = layer
        room -= size
    yield some


def _moments(
    model: Any, layers: Mapping[str, Any], texts: Sequence[Tokens], bar: Any
) -> dict[str, torch.Tensor]:
    """Layer -> E[x x^T] [in, in] of its inputs; of layers with the same input one tensor.

    Without the first token, whose inputs are huge and alike in all texts.
    """
    sums: dict[str, torch.Tensor] = {}
    tokens: dict[str, int] = {}
    same: dict[str, str] = {}
    last: list[Any] = [None, ""]  # the input that was counted last, and for which layer

    def counted(name: str) -> Any:
        def count(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            if args[0] is last[0]:
                same[name] = last[1]
                return
            last[:] = args[0], name
            x = args[0][:, 1:] if args[0].ndim == 3 else args[0]
            x = x.flatten(0, -2).float()
            sums[name] = sums.get(name, 0) + x.T @ x
            tokens[name] = tokens.get(name, 0) + len(x)

        return count

    handles = [layer.register_forward_pre_hook(counted(name)) for name, layer in layers.items()]
    try:
        for text in texts:
            model(input_ids=torch.tensor([text], device=model.device), use_cache=False)
            bar.update()
    finally:
        for handle in handles:
            handle.remove()
    means = {name: sums[name] / tokens[name] for name in sums if tokens[name]}
    return means | {name: means[of] for name, of in same.items() if of in means}


def _directions(own: torch.Tensor, others: Sequence[torch.Tensor], rank: int) -> torch.Tensor:
    """[rank, in]: directions that `own` has more than `others`, of moments [in, in].

    Together they make as much of their own texts as `RANK` random ones of PEFT's, and each as
    much as any other, so that a learning rate means the same however few they are. Beyond the width
    of the input they are 0.
    """
    width = len(own)
    other = torch.stack([*others]).mean(0)
    ridge = _RIDGE * other.diagonal().mean().clamp_min(1e-12)
    other = other + ridge * torch.eye(width, device=own.device)
    factor = torch.linalg.cholesky(other)
    drawn = torch.Generator(own.device).manual_seed(0)
    found = torch.randn(width, min(rank, width), generator=drawn, device=own.device)
    for _ in range(_ROUNDS):
        found, _ = torch.linalg.qr(torch.cholesky_solve(own @ found, factor))
    # The same problem within what is spanned, small: L^-1 C_own L^-T, with C_other = L L^T.
    inverse = torch.linalg.inv(torch.linalg.cholesky(found.T @ other @ found))
    _, turn = torch.linalg.eigh(inverse @ found.T @ own @ found @ inverse.T)
    found = found @ inverse.T @ turn
    wanted = own.diagonal().mean() / 3 * RANK / rank  # a third: kaiming_uniform_(a=sqrt(5))
    found = found * (wanted / (found * (own @ found)).sum(0).clamp_min(1e-12)).sqrt()
    return torch.nn.functional.pad(found.T, (0, 0, 0, rank - found.shape[1]))
