"""vLLM's general plugin `alignvec`: loaded in every process of an engine."""

from __future__ import annotations

from alignvec.errors import AlignvecError
from alignvec.serve.vllm import front, gate_cpu, worker
from alignvec.serve.vllm.told import Told
from vllm import __version__ as vllm_version

KNOWN = ("0.32", "0.33")  # what the places that it follows were read in; tested: docs/howto-vllm.md


def register() -> None:
    """Put the knobs in place.

    Raises:
        AlignvecError: there are knobs, and this release of vLLM is none that is known.
    """
    if not vllm_version.startswith(tuple(f"{one}." for one in KNOWN)):
        if Told.read() is None:
            return
        raise AlignvecError(
            f"vLLM {vllm_version} is not known to this alignvec, which knows "
            f"{' and '.join(KNOWN)}; install one of those"
        )
    front.follow()
    worker.follow()
    gate_cpu.follow()
