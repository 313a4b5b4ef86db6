"""What the processes of an engine are told of its knobs: by the environment (or `telling`, within a
process), and from there by vLLM's own configuration, which reaches every worker and is part of the
key of what it compiles.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import parse_pairs
from alignvec.vector.alignment_vector import AlignmentVector

KEY = "alignvec"  # in vLLM's additional_config
VECTORS = "ALIGNVEC_VECTORS"
NO_KNOBS = f"there are no knobs here; start vLLM with {VECTORS}=KNOB=PATH,..."
WAYS = ("gate", "resolver")


@dataclass(frozen=True)
class Told:
    """What the environment says.

    Attributes:
        vectors: `ALIGNVEC_VECTORS`, by knob the folder or hub id of its vector; or the vector.
        check_base: not `ALIGNVEC_ANY_BASE=1`.
        default: `ALIGNVEC_SET`, of requests over HTTP that say nothing.
        state: `ALIGNVEC_STATE`, the file of the profiles; empty: there are none.
        router: `ALIGNVEC_ROUTER`, the folder of a router that reads the text; empty: there is none.
        way: `ALIGNVEC_WAY`, `gate` (a strength a request) or `resolver` (an adapter a setting).
        step: `ALIGNVEC_STEP`, what strengths are rounded to where each setting is an adapter.
        most: `ALIGNVEC_MAX_ADAPTERS`, how many such adapters are kept.
        offline: whether no request comes over HTTP; the environment does not know.
    """

    vectors: Mapping[str, str | AlignmentVector]
    check_base: bool = True
    default: str = ""
    state: str = ""
    router: str = ""
    way: str = "gate"
    step: float = 0.05
    most: int = 64
    offline: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Told | None:
        """None where no knobs are asked for.

        Raises:
            AlignvecError: `ALIGNVEC_VECTORS` is not KNOB=PATH,..., or one of the others is not what
                it may be.
        """
        if (told := _TELLING.get()) is not None:
            return told if told.vectors else None
        vectors = environment.get(VECTORS, "").strip()
        if not vectors:
            return None
        try:
            pairs = parse_pairs(vectors, "vector", "KNOB=PATH, as in medical=medical-av")
        except AlignvecError as error:
            raise AlignvecError(f"{VECTORS}: {error}") from None
        told = cls(
            pairs,
            environment.get("ALIGNVEC_ANY_BASE", "") in ("", "0"),
            environment.get("ALIGNVEC_SET", ""),
            environment.get("ALIGNVEC_STATE", ""),
            environment.get("ALIGNVEC_ROUTER", ""),
            _one_of("ALIGNVEC_WAY", environment.get("ALIGNVEC_WAY") or cls.way, WAYS),
            _above_zero("ALIGNVEC_STEP", environment.get("ALIGNVEC_STEP") or cls.step),
            int(
                _above_zero(
                    "ALIGNVEC_MAX_ADAPTERS", environment.get("ALIGNVEC_MAX_ADAPTERS") or cls.most, 1
                )
            ),
        )
        for name in ("ALIGNVEC_SET", "ALIGNVEC_STATE", "ALIGNVEC_ROUTER"):
            if told.way == "resolver" and environment.get(name):
                raise AlignvecError(
                    f"{name} means nothing to ALIGNVEC_WAY=resolver, where the name of the model "
                    "alone turns knobs; unset it"
                )
        return told


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise AlignvecError(f"{name} is '{value}'; it may be {' or '.join(known)}")
    return value


def _above_zero(name: str, value: str | float, least: float = 1e-6) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise AlignvecError(f"{name} is '{value}'; it may be a number from {least:g}")
    return number


_TELLING: ContextVar[Told | None] = ContextVar("_TELLING", default=None)


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """Of an engine that is made in this block, whatever the environment says."""
    token = _TELLING.set(told)
    try:
        yield
    finally:
        _TELLING.reset(token)
