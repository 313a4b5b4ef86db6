"""What commands read before they start: records, vectors, settings, a model with its knobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.records import Record
    from alignvec.knobs.model import KnobModel
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


def source_name(data: str) -> str:
    """What artefacts call a source: of a path its last part."""
    return Path(data).name


def vector_sources(vectors: list[str]) -> dict[str, str]:
    """By knob, where its vector is."""
    sources: dict[str, str] = {}
    for text in vectors:
        knob, equals, source = text.partition("=")
        if not (knob and equals and source):
            raise AlignvecError(f"'{text}' is no vector; write KNOB=PATH, as in medical=medical-av")
        if knob in sources:
            raise AlignvecError(f"knob '{knob}' has two vectors")
        sources[knob] = source
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


def levels_of(levels: str | None, spectrum: str | None) -> tuple[list[str] | None, dict[str, str]]:
    """The levels asked for, from low to high, and what those of the spectrum mean."""
    from alignvec.data.pairs import parse_order
    from alignvec.data.spectrum import read_spectrum

    told = read_spectrum(spectrum).levels if spectrum else []
    names = parse_order(levels) if levels else [level.name for level in told]
    return names or None, {level.name: level.instruction for level in told}
