"""What a request to vLLM's own routes asks of the knobs, put where the core takes it.

A body may say it in four ways: `knobs`, `profile`, the name of the model (`BASE:medical=0.7`), and
`vllm_xargs: {"knobs": "medical=0.7"}`, which vLLM's own clients can send. All go through the dial;
what is left is a body as vLLM knows it, whose sampling parameters carry the setting (see `front`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import parse_written
from alignvec.serve.dial import Dial, Turned
from alignvec.serve.errors import Refused
from alignvec.serve.vllm.bound import bounded

_OURS = ("knobs", "profile")
# Where clients put them by mistake, or for another route.
_ELSEWHERE = ("extra_body", "extra_args", "alignvec", "vllm_xargs", "sampling_params")


class Way(Enum):
    """What a route does with a body, by where the core takes a setting from it."""

    XARGS = ("vllm_xargs",)
    SAMPLING = ("sampling_params", "extra_args")
    COMPUTES_NOTHING = ()  # of tokens and texts alone: a setting changes nothing
    UNSTEERED = None  # vLLM drops what the core would need


class Steering:
    """The knobs of an engine, as the bodies of requests turn them."""

    def __init__(
        self,
        dial: Dial,
        names: Sequence[str],
        adapters: Container[str] = (),
        resolves: bool = False,
        texts: Callable[[Mapping[str, Any]], list[str]] | None = None,
    ) -> None:
        """Args:
        names: of the base, as vLLM serves it.
        adapters: names of those that users have loaded, as they are now.
        resolves: whether vLLM may find adapters by other names, too.
        texts: what a body asks, for a router; None: there is none.
        """
        self._dial = dial
        self._names = sorted(names, key=len, reverse=True)
        self._adapters = adapters
        self._resolves = resolves
        self._texts = texts or (lambda _: [""])

    def steer(self, body: dict[str, Any], way: Way) -> Turned | None:
        """The setting that answers a body, which from then on is one that vLLM knows.

        Returns:
            None if a user's adapter answers.

        Raises:
            Refused: it is none, or this route or request cannot be steered.
        """
        path = way.value or ()
        args = _inside(body, path)
        _check_spelling(body, args, path)
        asked = _once(body.get("knobs"), args.get("knobs"))
        says = asked is not None or body.get("profile") is not None
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise Refused("model is a text", code="invalid_value", param="model")
        own = next((one for one in self._names if _is_named(model or "", one)), None)
        if model and (model in self._adapters or (own is None and self._resolves)):
            if says:
                raise Refused(
                    f"model '{model}' is an adapter; a request names one or turns knobs, not both",
                    code="adapter_with_knobs",
                    param="model",
                )
            return None
        named = f"{self._dial.model}{model[len(own) :]}" if model and own else model or None
        turned = self._dial.read_all(named, asked, body.get("profile"), self._texts(body))
        try:
            bounded(turned.setting)  # what vLLM says within a stream has no status any more
        except AlignvecError as error:
            raise Refused(str(error), code="invalid_strength", param="knobs") from None
        turns = {knob: strength for knob, strength in turned.setting.items() if strength}
        # Of such a body no router reads the text: any setting of the server's might have to act.
        if way is Way.UNSTEERED and (turns or says or any(self._dial.default.values())):
            raise Refused(
                "knobs do not reach this route of vLLM: it hands no arguments on; leave them out"
                + ("" if says else ", and start the server without a setting of its own"),
                code="not_steered",
                param="knobs",
            )
        if turns and body.get("use_beam_search"):
            raise Refused(
                'vLLM\'s beam search drops the knobs; leave it out, or ask for the base: "knobs": '
                "{}",
                code="unsupported_parameter",
                param="use_beam_search",
            )
        for field in _OURS:
            body.pop(field, None)
        if own:
            body["model"] = own
        args.pop("knobs", None)
        if turns and way.value:
            # Repr has all digits of a number.
            args["knobs"] = ",".join(f"{knob}={strength!r}" for knob, strength in turns.items())
            _put(body, way.value, args)
        return turned


def _check_spelling(body: Mapping[str, Any], args: Mapping[str, Any], path: Sequence[str]) -> None:
    """vLLM takes any field and passes over what it does not know; what is meant for us may not be
    passed over.
    """
    known = (*_OURS, "vllm_xargs")
    for field in body.keys() - set(known):
        if close := get_close_matches(field.casefold(), known, n=1, cutoff=0.8):
            raise _misspelt(field, f"did you mean '{close[0]}'?")
    for field in args.keys() - {"knobs"}:
        if _is_ours(field):
            raise _misspelt(field, "vLLM's arguments take 'knobs'; a profile goes into the body")
    for field, inner in _elsewhere(_without(body, path)):
        places = [inner, *(deeper for _, deeper in _elsewhere(inner))]
        if any(_is_ours(name) for place in places for name in place):
            raise Refused(
                f"no knobs are read in '{field}' here; put knobs and profile into the body itself",
                code="unknown_parameter",
                param=field,
            )


def _is_ours(field: str) -> bool:
    return bool(get_close_matches(field.casefold(), _OURS, cutoff=0.8))


def _elsewhere(body: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(field, body[field]) for field in _ELSEWHERE if isinstance(body.get(field), Mapping)]


def _without(body: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The same body, less the object at a path."""
    kept = dict(body)
    if path and isinstance(inner := kept.pop(path[0], None), Mapping) and path[1:]:
        kept[path[0]] = _without(inner, path[1:])
    return kept


def _misspelt(field: str, hint: str) -> Refused:
    return Refused(
        f"'{field}' is no parameter that is known; {hint}", code="unknown_parameter", param=field
    )


def _is_named(model: str, name: str) -> bool:
    return model == name or model.startswith(f"{name}:")


def _inside(body: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The object at a path of a body; a new one where there is none."""
    found = dict(body) if path else {}
    for field in path:
        inner = {} if found.get(field) is None else found[field]
        if not isinstance(inner, dict):
            raise Refused(f"{field} is an object", code="invalid_value", param=field)
        found = inner
    return found


def _put(body: dict[str, Any], path: Sequence[str], value: dict[str, Any]) -> None:
    *way, last = path
    for field in way:
        if body.get(field) is None:
            body[field] = {}
        body = body[field]
    body[last] = value


def _once(field: object, argument: object) -> object:
    """What a body asks, in `knobs` or in vLLM's arguments, where it may stand as a text."""
    if argument is None:
        return field
    if field is not None:
        raise Refused(
            "the knobs are turned twice: in knobs and in vllm_xargs",
            code="knob_twice",
            param="knobs",
        )
    if not isinstance(argument, str):
        return argument
    try:
        return parse_written(argument) if argument.strip() else {}
    except AlignvecError as error:
        raise Refused(str(error), code="invalid_knobs", param="knobs") from None


def texts_of(body: Mapping[str, Any], decode: Callable[[list[int]], str]) -> list[str]:
    """What a body of any of vLLM's routes asks last, of each conversation or prompt in it.

    Args:
        decode: from tokens to their text.
    """
    asked = body.get("messages")
    if isinstance(asked, list) and asked:
        return [_question(chat) for chat in (asked if isinstance(asked[0], list) else [asked])]
    for field in ("prompt", "input", "token_ids"):
        asked = body.get(field)
        if isinstance(asked, str):
            return [asked]
        if not isinstance(asked, list) or not asked:
            continue
        if isinstance(asked[0], Mapping):
            return [_question(asked)]
        if isinstance(asked[0], int):
            return [_decoded(asked, decode)]
        return [one if isinstance(one, str) else _decoded(one, decode) for one in asked]
    return [""]


def _question(chat: Sequence[Any]) -> str:
    """What the user said last; vLLM says of a chat what is wrong with it."""
    for turn in reversed(chat):
        if isinstance(turn, Mapping) and turn.get("role") == "user":
            content = turn.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
            return "".join(text for text in texts if isinstance(text, str))
    return ""


def _decoded(tokens: Any, decode: Callable[[list[int]], str]) -> str:
    if not isinstance(tokens, list) or not all(type(one) is int and one >= 0 for one in tokens):
        return ""  # which vLLM refuses
    return decode(tokens)
