"""How far a knob may be turned where others are answered from the same cache."""

from __future__ import annotations

from collections.abc import Mapping

from alignvec.errors import AlignvecError

_MOST = 100.0  # what a strength may be


def bounded(setting: Mapping[str, float]) -> dict[str, float]:
    """The same setting, if no strength is so large that numbers overflow. What a request leaves in
    vLLM's cache, others are answered from once its blocks are free, and one that is no number
    spoils theirs.

    Raises:
        AlignvecError: a strength is beyond 100, or no number.
    """
    for knob, strength in setting.items():
        if isinstance(strength, str) or not abs(strength) <= _MOST:
            raise AlignvecError(
                f"knob '{knob}': {strength} is no number from -{_MOST:g} to {_MOST:g}; beyond, "
                "numbers overflow and spoil vLLM's cache for others"
            )
    return dict(setting)
