"""vLLM's general plugin `alignvec`: loaded in every process of an engine."""

from __future__ import annotations

from importlib import import_module

from vllm import __version__ as vllm_version

from alignvec.errors import AlignvecError, one_line
from alignvec.serve.vllm.told import Told

KNOWN = ("0.32", "0.33")  # what the places that it follows were read in; tested: docs/howto-vllm.md


def register() -> None:
    """Put the knobs in place.

    Raises:
        AlignvecError: there are knobs, and this release of vLLM is none that is known, or one that
            does not fit.
    """
    told = Told.read()
    if told is not None and told.way == "resolver":
        _follow("resolver")
        return
    if not vllm_version.startswith(tuple(f"{one}." for one in KNOWN)):
        if told is None:
            return
        raise AlignvecError(
            f"vLLM {vllm_version} is not known to this alignvec, which knows "
            f"{' and '.join(KNOWN)}; install one of those, or turn knobs by the name of the model, "
            "which needs little of vLLM but its adapters: ALIGNVEC_WAY=resolver"
        )
    _follow("front", "worker", "gate_cpu", "fold")


def _follow(*names: str) -> None:
    """Imported here, not above: without a plugin that it cannot import vLLM goes on, and its users
    without knowing; at what is raised here it stops.
    """
    for name in names:
        try:
            part = import_module(f"{__package__}.{name}")
        except ImportError as error:
            raise AlignvecError(
                f"alignvec does not fit vLLM {vllm_version}: {one_line(error)}; it knows "
                f"{' and '.join(KNOWN)}"
            ) from error
        part.follow()
