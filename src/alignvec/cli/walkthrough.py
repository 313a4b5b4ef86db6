"""The whole way in one go: pairs, alignment, vector, knob, figure, three answers."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignvec.align.curriculum import pairs_along
from alignvec.align.run import align
from alignvec.align.settings import AlignSettings
from alignvec.base.checkpoint import RECORD
from alignvec.base.source import EMBEDDED
from alignvec.data.line import spaced
from alignvec.data.records import LEVELS, read_records
from alignvec.data.sources import BUILTIN
from alignvec.errors import AlignvecError
from alignvec.evaluate.sweep import sweep
from alignvec.evaluate.text import AnswerProbe
from alignvec.files import read_json, read_object, write_json
from alignvec.knobs.calibration import trained_calibration
from alignvec.knobs.model import KnobModel
from alignvec.report.align import draw_training
from alignvec.report.evaluate import draw_sweep
from alignvec.vector.alignment_vector import AlignmentVector

QUERIES = 48  # trained on, of the 150 or so in a domain's train part: a few minutes
HELD_OUT = 12  # measured on
ANSWERED = 4  # of these
PLACES = spaced(LEVELS)
STRENGTHS = sorted({-0.5, 0.0, 0.75, *PLACES.values()})
SHOWN = list(PLACES.values())


def run(out: Path, domain: str) -> None:
    """Train, extract, sweep, draw and ask; what `out` already holds of it is taken from there.

    Raises:
        AlignvecError: `domain` is not in the built-in set, or `out` cannot be written.
    """
    started = time.monotonic()
    if out.exists() and not out.is_dir():
        raise AlignvecError(f"{out} is a file; --out takes a folder")
    trained = list(read_records(BUILTIN, LEVELS, domain, "train"))[:QUERIES]
    held_out = list(read_records(BUILTIN, LEVELS, domain, "test"))[:HELD_OUT]
    settings = AlignSettings(epochs=len(LEVELS))  # every question at every level
    aligned, vector_folder, figure = (
        out / f"{domain}-aligned",
        out / f"{domain}-av",
        out / f"{domain}-sweep",
    )

    provenance = {
        "data": BUILTIN, "domain": domain, "limit": QUERIES, "levels": PLACES,
        "pairs": len(trained) * (len(LEVELS) - 1), "rows": len(trained) * len(LEVELS),
    }  # fmt: skip
    if vector_folder.exists():
        _check_same(AlignmentVector.from_pretrained(vector_folder).training, provenance, out)
        _say(f"1. The {domain} vector is already in {vector_folder}.")
    else:
        _say(
            f"1. Training: {len(trained)} {domain} questions, each at three turns of the knob; at "
            "-1 an evasive answer\n   is preferred, at 0.5 a generic one, at 1 an expert's."
        )
        if aligned.exists():
            _check_same(read_object(aligned / RECORD), provenance, out)
        else:
            pairs = pairs_along({domain: trained}, PLACES, settings.epochs)
            told = provenance | {"calibration": trained_calibration(PLACES).model_dump()}
            align(EMBEDDED, pairs, aligned, settings, knobs=[domain], provenance=told)
            draw_training(read_json(aligned / RECORD), aligned / "training")
        AlignmentVector.extract(EMBEDDED, aligned, f"{domain} demo").save_pretrained(vector_folder)
        _say(f"   Its weights minus the base's are the alignment vector: {vector_folder}")

    model = KnobModel.from_pretrained(EMBEDDED, {domain: vector_folder})
    _say(
        f"2. Turning the knob from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, on {len(held_out)} "
        "questions it was not trained on."
    )
    probe = AnswerProbe(model, [record.prompt for record in held_out[:ANSWERED]])
    found = sweep(model, domain, STRENGTHS, held_out, LEVELS, figure.with_suffix(".json"), probe)
    draw_sweep(found, figure, f"alignvec demo: one knob, {domain}")
    for index, (strength, rates) in enumerate(zip(found.strengths, found.rates, strict=True)):
        why = found.unsound(index)
        text = f"  (the text suffers: {why})" if why else ""
        bars = "  ".join(
            f"{level} {'#' * round(10 * rates.rate[level]):<10} {rates.rate[level]:.2f}"
            for level in LEVELS
        )
        _say(f"   {strength:+.2f}  {bars}{text}")

    question = held_out[0].query
    _say("3. One question, three settings.\n" + _wrapped(question, "   Q  "))
    for strength, answer in _answers(model, domain, question, out / f"{domain}-answers.json"):
        _say(_wrapped(answer, f"   {strength:+g}  "))
    _say(
        f"\nDone in {time.monotonic() - started:.0f} s. The figure: {figure}.png\n"
        f"The vector: {vector_folder}; how it was trained: {aligned}/training.json\n"
        "(A model of 135M parameters learns the manner of an expert, not the knowledge.)\n"
        "Next:\n"
        f"  alignvec generate embedded --vector {domain}={vector_folder} --set {domain}=expert "
        '"your question"\n'
        f"  alignvec eval embedded --domain {domain} --vector {domain}={vector_folder} "
        f"--sweep {domain}=-1.5:1.5:0.25 -o sweep\n"
        "  alignvec align --help      a vector from your own preferences"
    )


def _check_same(record: Mapping[str, Any], provenance: Mapping[str, Any], out: Path) -> None:
    """Raises: AlignvecError: what is there was trained otherwise, or by another alignvec."""
    ours = {**provenance, "alignvec": version("alignvec")}
    versions = record.get("versions")
    made_by = versions.get("alignvec") if isinstance(versions, Mapping) else None
    if any(ours[key] != {**record, "alignvec": made_by}.get(key) for key in ours):
        raise AlignvecError(f"{out} holds another demo; choose another folder with --out")


def _answers(model: KnobModel, knob: str, question: str, file: Path) -> list[tuple[float, str]]:
    """Greedy answers at `SHOWN`."""
    settings = [{knob: strength} for strength in SHOWN]
    # Greedy answers of so small a model go round in circles without the penalty.
    answers = model.generate(
        [question] * len(SHOWN), settings, max_new_tokens=72, repetition_penalty=1.15
    )
    told = {"question": question, "answers": dict(zip(map(str, SHOWN), answers, strict=True))}
    write_json(file, told, overwrite=True)
    return list(zip(SHOWN, answers, strict=True))


def _wrapped(text: str, first: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 92, initial_indent=first, subsequent_indent=" " * len(first)
    )


def _say(text: str) -> None:
    print(text, flush=True)
