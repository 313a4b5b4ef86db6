"""A trial: whether adding to the outputs of modules is the same as changing their weights.

The model is run as it will be, a prefill and then token by token over its cache, and each module
that is to be gated is watched:

    its rows      what it returns for a row depends on that row alone, and lies where rows lie
    its weights   nobody reads them past it (a recurrent layer may, where it takes a single token)
    its state     called again as it was, it returns the same again: nothing is kept between calls
    its form      it is affine in its weights

So no list of architectures is needed, and one that is not seen to be right is refused.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignvec.errors import AlignvecError

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments
Seen = list[tuple[Call, Any]]  # the calls of a module with what it returned

_ROWS, _TOKENS, _NEW = 3, 5, 3
_PLAIN = (nn.Linear, Conv1D, nn.Embedding)  # affine and without state by what they are


def observed(model: PreTrainedModel, names: Mapping[nn.Module, str]) -> dict[nn.Module, Seen]:
    """How each module is called in a trial.

    Args:
        names: modules with the name of a tensor of theirs, for messages.

    Raises:
        AlignvecError: one cannot be gated for its rows or its weights, by the name of its tensor.
    """
    seen, logits = _watch(model, names)
    if any(bool(step.isnan().any()) for step in logits):
        dtype = str(model.dtype).removeprefix("torch.")
        raise AlignvecError(f"the model computes no numbers in {dtype}; load it in another dtype")
    others, other_logits = _watch(model, names, other_rows=1)
    for module, name in names.items():
        if not seen[module]:
            raise not_gateable(name, f"{_kind(module)} is not called on its own")
        if not _sees_rows(seen[module], others[module]):
            raise not_gateable(name, f"{_kind(module)} does not see rows")
    noise = _apart(logits[0][0], other_logits[0][0])
    if read := _read_past(model, list(names), logits, 2 * noise):
        raise not_gateable(names[read], f"it is read past {_kind(read)}")
    return seen


def first_argument(call: Call) -> Any:
    """What a layer of one argument is handed, by place or by name."""
    args, kwargs = call
    return args[0] if args else next(iter(kwargs.values()))


def reading_alike(seen: Mapping[nn.Module, Seen]) -> list[list[nn.Module]]:
    """Layers of one argument by what they are handed: those that always get the same tensor."""
    found: dict[Any, list[nn.Module]] = defaultdict(list)
    for module, calls in seen.items():
        found[tuple(id(first_argument(call)) for call, _ in calls)].append(module)
    return list(found.values())


def is_linear(module: nn.Module, seen: Seen) -> bool:
    """Whether a module with a weight [out, in] and perhaps a bias returns W x + b."""
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if not isinstance(module, nn.Linear):
        return False
    with torch.no_grad():
        wanted = [
            (nn.functional.linear(args[0], module.weight, module.bias), output)
            for (args, kwargs), output in seen
            if len(args) == 1 and not kwargs and isinstance(output, torch.Tensor)
        ]
    return len(wanted) == len(seen) and all(_is_close(*pair) for pair in wanted)


def check_affine(module: nn.Module, seen: Seen, name: str) -> None:
    """Raises: AlignvecError: a module keeps state, or is not affine in its own parameters."""
    if type(module) in _PLAIN:
        return
    try:
        with torch.no_grad():
            keeps_state = not all(_is_repeatable(module, call, output) for call, output in seen)
            exact = module
            if next(module.parameters()).dtype.itemsize < 4:
                exact = copy.deepcopy(module).float()  # else rounding would hide what is not
            affine = keeps_state or all(
                _is_affine(exact, _mapped(call, _exact)) for call, _ in seen
            )
    except Exception:  # it returns no tensor, or does not run with other weights
        keeps_state = affine = False
    if keeps_state:
        raise not_gateable(name, f"{_kind(module)} keeps state from token to token")
    if not affine:
        raise not_gateable(name, f"{_kind(module)} is not affine in it")


def with_parameters(module: nn.Module, parameters: Mapping[str, Any]) -> nn.Module:
    """A copy of a module with other values for its parameters and without its hooks."""
    copied = copy.copy(module)
    copied._parameters = dict(parameters)
    copied._forward_hooks = OrderedDict()
    copied._forward_pre_hooks = OrderedDict()
    return copied


def not_gateable(name: str, why: str) -> AlignvecError:
    """The refusal of a tensor, by its name."""
    return AlignvecError(f"{name} cannot be gated: {why}; fold the vector (mode 'fold')")


def _run(model: PreTrainedModel, other_rows: int = 0) -> list[torch.Tensor]:
    """The logits of a prefill of three rows and of two tokens more, in evaluation mode.

    Args:
        other_rows: whatever it is, the first row stays; the others are different tokens.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(_ROWS * _TOKENS, device=model.device).view(_ROWS, _TOKENS)
    ids[1:] += _ROWS * _TOKENS * other_rows
    training, own = model.training, model.generation_config
    # Whatever else a model's config asks of generation (beams, a second pass) is not to be tried.
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        with torch.no_grad():
            found: Any = model.eval().generate(
                ids % vocabulary,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=_NEW,
                do_sample=False,
                use_cache=True,
                disable_compile=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
    finally:
        model.train(training)
        model.generation_config = own
    return list(found.logits)


def _watch(
    model: PreTrainedModel, modules: Iterable[nn.Module], other_rows: int = 0
) -> tuple[dict[nn.Module, Seen], list[torch.Tensor]]:
    """The calls of modules in a run, and its logits."""
    seen: dict[nn.Module, Seen] = {module: [] for module in modules}
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with what they are of

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        """What comes after may write into a tensor; as long as nothing did, it has one copy."""
        _, found = copies.get(id(tensor), (None, None))
        if found is None or not torch.equal(found, tensor):
            found = tensor.clone()
            copies[id(tensor)] = tensor, found
        return found

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[module].append(_mapped(((args, kwargs), output), copied))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in seen]
    try:
        return seen, _run(model, other_rows)
    finally:
        for handle in handles:
            handle.remove()


def _sees_rows(first: Seen, second: Seen) -> bool:
    """Whether what a module returns begins with the first row, in every call alike.

    It may see the tokens of all rows one after another, or positions once for all rows.
    """
    if len(first) != len(second):
        return False
    for (_, one), (_, other) in zip(first, second, strict=True):
        if not isinstance(one, torch.Tensor):
            continue  # left to the other checks
        if one.shape != other.shape or len(one) not in (1, _ROWS, _ROWS * _TOKENS):
            return False
        rows = max(1, len(one) // _ROWS)
        # Other neighbours may mean other sums: of experts, say, with as many tokens as there are.
        moved = (one[:rows].float() - other[:rows].float()).abs().max()
        if not moved <= 0.05 * one.float().abs().max():
            return False
    return True


def _read_past(
    model: PreTrainedModel, modules: Sequence[nn.Module], logits: list[torch.Tensor], noise: float
) -> nn.Module | None:
    """A module whose parameters are read by others than itself, if there is one.

    Args:
        logits: of the trial.
        noise: by how much they may differ from one run to the next.
    """

    def is_read(part: Sequence[nn.Module]) -> bool:
        with ExitStack() as stack:
            for module in part:
                stack.enter_context(_hidden(module))
            found = _run(model)
        return not all(
            _apart(one, other) <= noise for one, other in zip(found, logits, strict=True)
        )

    return _first(modules, is_read)


def _first(
    modules: Sequence[nn.Module], fails: Callable[[Sequence[nn.Module]], bool]
) -> nn.Module | None:
    """One of `modules` for which `fails` holds, found by halves."""
    if not modules or not fails(modules):
        return None
    while len(modules) > 1:
        half = modules[: len(modules) // 2]
        modules = half if fails(half) else modules[len(half) :]
    return modules[0]


@contextmanager
def _hidden(module: nn.Module) -> Iterator[None]:
    """The parameters of a module are others, of about their size, to all but its own calls.

    Not NaN, which a state would keep for ever.
    """
    own = dict(module._parameters)
    hidden: dict[str, Any] = dict(own)
    for part, p in own.items():
        if p is not None and p.is_floating_point():
            size = 1.5 * p.detach().float().square().mean().sqrt() + 0.05
            hidden[part] = size.to(p.dtype).expand_as(p)

    def show(module: nn.Module, args: Any) -> None:
        module._parameters.update(own)

    def hide(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(hidden)

    handles = [
        module.register_forward_pre_hook(show),
        module.register_forward_hook(hide, always_call=True),
    ]
    module._parameters.update(hidden)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module._parameters.update(own)


def _is_repeatable(module: nn.Module, call: Call, output: torch.Tensor) -> bool:
    """Whether a module is handed no state, and a copy of it returns once more what it returned."""
    args, kwargs = call
    if not _is_data([args, kwargs]):
        return False
    return _is_close(with_parameters(module, module._parameters)(*args, **kwargs), output)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference. Two infinities are equal."""
    return float((one.float() - other.float()).masked_fill(one == other, 0).abs().max())


def _is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Up to the rounding of their dtype."""
    by = torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    return bool(torch.allclose(found, wanted, rtol=0, atol=8 * by))


def _is_data(value: Any) -> bool:
    """Tensors and plain values; a cache is neither."""
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(value, torch.Tensor | int | float | str | torch.Size)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with its tensors changed."""
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_mapped(one, change) for one in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.is_floating_point() and tensor.itemsize < 4
    return tensor.float() if half else tensor


def _is_affine(module: nn.Module, call: Call) -> bool:
    """f(w + by * d) - f(w) = by * (f(d) - f(0)), for each parameter and for all at once."""
    args, kwargs = call
    own = {part: p.detach() for part, p in module._parameters.items() if p is not None}
    nothing = {part: torch.zeros_like(p) for part, p in own.items()}
    swing = {
        part: torch.arange(p.numel(), device=p.device).cos().view_as(p).to(p)
        * p.abs().max().clamp(min=0.1)
        for part, p in own.items()
    }

    def output(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        every = {**module._parameters, **parameters}
        found: torch.Tensor = with_parameters(module, every)(*args, **kwargs)
        return found

    here, origin = output(own), output(nothing)
    alone = [{part: swing[part]} for part in own] if len(own) > 1 else []
    for moved in [swing, *alone]:
        effect = output({**nothing, **moved}) - origin
        for by in (1.0, -2.0):
            there = output({**own, **{part: own[part] + by * moved[part] for part in moved}})
            error = (there - here - by * effect).abs().max()
            noise = 1e-4 * effect.abs().max() + 1e-5 * there.abs().max()
            if not (effect.any() and error <= noise):
                return False
    return True


def _kind(module: nn.Module) -> str:
    return type(module).__name__
