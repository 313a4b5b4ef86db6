"""A setting as vLLM carries it from a request to its workers: in the path of an adapter.

vLLM hands the adapter that a request names on to every worker, through preemption, beams and both
of its model runners, and puts name and path of it into the hash of what its prefix cache keeps. It
reads the path when it loads the adapter, and ours is loaded from elsewhere: so the path is where
the setting stands. The number and the name are the same for all settings, which thus share a slot,
a batch and a line in vLLM's metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from vllm.lora.request import LoRARequest

from alignvec.serve.vllm.bound import bounded

NAME = "alignvec"
NUMBER = 0x616C76  # of the adapter; vLLM counts those of users from 1
_SCHEME = "alignvec:"


def turned(setting: Mapping[str, float]) -> LoRARequest | None:
    """The adapter that a request of this setting names; None of the base.

    Args:
        setting: knob -> strength in numbers; equal settings give equal paths.

    Raises:
        AlignvecError: a strength is none, or too large.
    """
    setting = bounded(setting)
    strengths = {knob: float(setting[knob]) for knob in sorted(setting) if setting[knob]}
    return carrier(strengths) if strengths else None


def carrier(strengths: Mapping[str, float]) -> LoRARequest:
    """The adapter with these strengths, even if there are none."""
    path = _SCHEME + json.dumps(strengths, separators=(",", ":"))
    return LoRARequest(NAME, NUMBER, path)


def is_ours(request: LoRARequest | None) -> bool:
    """Whether it is the adapter of the knobs."""
    return request is not None and request.lora_int_id == NUMBER


def setting_of(path: str) -> dict[str, float]:
    """Knob -> strength, of the knobs that are not at 0, from the path of our adapter."""
    found: dict[str, float] = json.loads(path.removeprefix(_SCHEME))
    return found
