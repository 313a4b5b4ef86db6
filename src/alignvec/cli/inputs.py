"""What commands read before they start: records, vectors, settings, a model with its knobs."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignvec.data.records import Record
    from alignvec.evaluate.measurable import Measurable
    from alignvec.knobs.model import KnobModel
    from alignvec.reproduce.models import Engine, Running
    from alignvec.vector.alignment_vector import AlignmentVector


def records_of(
    data: str, levels: list[str], domain: str | None, split: str | None, builtin_split: str
) -> list[Record]:
    """The records asked for; `builtin_split` is what builtin data gives if no split is.

    Raises:
        AlignvecError: see `read_records`.
    """
    from alignvec.data.records import read_records
    from alignvec.data.sources import BUILTIN

    if split is None and data == BUILTIN:
        split = builtin_split
    return list(read_records(data, levels, domain, None if split == "all" else split))


def compared_levels(
    levels: str | None, data: str, vectors: Mapping[str, AlignmentVector]
) -> list[str]:
    """The levels to compare, from low to high: those given, or of data that is not builtin those
    that the vectors name.

    Raises:
        AlignvecError: no list of levels, or the vectors have different ones.
    """
    from alignvec.data.pairs import parse_order
    from alignvec.data.records import LEVELS
    from alignvec.data.sources import BUILTIN
    from alignvec.knobs.calibration import named_levels

    if levels is not None:
        return parse_order(levels)
    if data == BUILTIN:
        return list(LEVELS)
    named = {knob: own for knob, one in vectors.items() if (own := named_levels(one.calibration))}
    first = next(iter(named.values()), list(LEVELS))
    if any(own != first for own in named.values()):
        told = "; ".join(f"'{knob}' {', '.join(own)}" for knob, own in named.items())
        raise AlignvecError(f"the knobs have different levels ({told}): say which with --levels")
    return first


def source_name(data: str) -> str:
    """What artefacts call a source: of a path its last part."""
    return Path(data).name


def vector_sources(vectors: list[str]) -> dict[str, str]:
    """By knob, where its vector is; a `~` that the shell left, behind KNOB=, is the home."""
    sources: dict[str, str] = {}
    for text in vectors:
        knob, equals, source = text.partition("=")
        if not (knob and equals and source):
            raise AlignvecError(f"'{text}' is no vector; write KNOB=PATH, as in medical=medical-av")
        if knob in sources:
            raise AlignvecError(f"knob '{knob}' has two vectors")
        sources[knob] = str(Path(source).expanduser()) if source.startswith("~") else source
    return sources


def vectors_and_settings(
    vectors: list[str], settings: list[str]
) -> tuple[dict[str, AlignmentVector], list[dict[str, float]]]:
    """Vectors by knob, and the settings asked for, checked against them."""
    from alignvec.knobs.setting import check_setting, parse_setting
    from alignvec.vector.alignment_vector import AlignmentVector

    loaded = {
        knob: AlignmentVector.from_pretrained(source)
        for knob, source in vector_sources(vectors).items()
    }
    return loaded, [check_setting(parse_setting(text), loaded) for text in settings]


def knob_model(
    base: str,
    vectors: list[str],
    settings: list[str],
    any_base: bool,
    dtype: str | None,
    device: str | None,
    mode: str = "auto",
) -> tuple[KnobModel, list[dict[str, float]]]:
    """The model with its knobs, and the settings asked for (all zero if none), checked first."""
    from alignvec.knobs.model import KnobModel
    from alignvec.knobs.setting import check_setting, parse_setting

    loaded, _ = vectors_and_settings(vectors, settings)
    model = KnobModel.from_pretrained(base, loaded, dtype, device, not any_base, mode)
    # Again: on a base that is not a vector's own, its units mean nothing.
    parsed = [check_setting(parse_setting(text), model.vectors) for text in settings]
    return model, parsed or [dict.fromkeys(loaded, 0.0)]


def measured_model(
    base: str,
    vectors: dict[str, AlignmentVector],
    any_base: bool,
    dtype: str | None,
    device: str | None,
    engine: str,
    engine_args: str | None,
) -> Measurable:
    """The model with its knobs, on the engine that is asked for.

    Raises:
        AlignvecError: vLLM is not installed, or an option is another engine's.
    """
    load = vllm_loader(engine, engine_args, dtype)
    if load is None:
        from alignvec.knobs.model import KnobModel

        return KnobModel.from_pretrained(base, vectors, dtype, device, not any_base)
    if device is not None:
        raise AlignvecError("vLLM finds its devices by itself; leave --device out")
    return load(base, vectors, any_base)


def vllm_loader(engine: str, engine_args: str | None, dtype: str | None) -> Engine | None:
    """What loads a base and its vectors on vLLM; None where the engine is transformers.

    Raises:
        AlignvecError: vLLM is not installed, or its arguments are none.
    """
    if engine == "transformers":
        if engine_args is not None:
            raise AlignvecError("--engine-args are vLLM's; they go with --engine vllm")
        return None
    try:
        arguments = json.loads(engine_args or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise AlignvecError(
            "--engine-args is no JSON object; write it as '{\"tensor_parallel_size\": 8}'"
        )
    check_vllm("vllm,search")

    def load(base: str, vectors: Mapping[str, AlignmentVector], any_base: bool) -> Running:
        # Before vLLM is imported: stdout is for results.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        # Ended at once, this process would leave those of the engine behind.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        from alignvec.serve.vllm.offline import VllmModel

        return VllmModel(base, vectors, dtype, not any_base, arguments)

    return load


def check_vllm(extras: str) -> None:
    """Say which `extras` bring vLLM, if it is not there.

    Raises:
        AlignvecError: vLLM is not installed.
    """
    found = find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise AlignvecError(
            "vLLM is not installed here; in an environment of its own: "
            f"pip install 'alignvec[{extras}]'"
        )


def levels_of(levels: str | None, spectrum: str | None) -> tuple[list[str] | None, dict[str, str]]:
    """The levels asked for, from low to high, and what those of the spectrum mean."""
    from alignvec.data.pairs import parse_order
    from alignvec.data.spectrum import read_spectrum

    told = read_spectrum(spectrum).levels if spectrum else []
    names = parse_order(levels) if levels else [level.name for level in told]
    return names or None, {level.name: level.instruction for level in told}
