"""The whole way in one go: pairs, alignment, vector, knob, figure, three answers."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from alignvec.align.run import RECORD, align
from alignvec.align.settings import AlignSettings
from alignvec.base.source import EMBEDDED
from alignvec.data.pairs import preference_pairs
from alignvec.data.records import BUILTIN, LEVELS, read_records
from alignvec.errors import AlignvecError
from alignvec.evaluate.sweep import sweep
from alignvec.files import read_json, write_json
from alignvec.knobs.model import KnobModel
from alignvec.report.align import draw_training
from alignvec.report.evaluate import draw_sweep
from alignvec.vector.alignment_vector import AlignmentVector

QUERIES = 36  # trained on, of the 150 or so in a domain's train part: a minute or two
HELD_OUT = 12  # measured on
STRENGTHS = [-3.0, -1.5, 0.0, 1.0, 2.0, 3.0]
SHOWN = [-1.0, 0.0, 1.5]


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
    settings = AlignSettings(learning_rate=1.5e-3)  # so few steps have to be longer ones
    aligned, vector_folder, figure = (
        out / f"{domain}-aligned",
        out / f"{domain}-av",
        out / f"{domain}-sweep",
    )

    if vector_folder.exists():
        _say(f"1. The {domain} vector is already in {vector_folder}.")
    else:
        _say(
            f"1. Training: {len(trained)} {domain} questions; an expert answer is preferred to a "
            "generic one,\n   a generic one to an evasive one."
        )
        if not aligned.exists():
            pairs = list(preference_pairs(trained, ["expert", "generic", "avoidance"]))
            provenance = {"data": BUILTIN, "domain": domain, "limit": QUERIES}
            align(EMBEDDED, pairs, aligned, settings, provenance=provenance)
            draw_training(read_json(aligned / RECORD), aligned / "training")
        AlignmentVector.extract(EMBEDDED, aligned, f"{domain} demo").save_pretrained(vector_folder)
        _say(f"   Its weights minus the base's are the alignment vector: {vector_folder}")

    model = KnobModel.from_pretrained(EMBEDDED, {domain: vector_folder})
    _say(
        f"2. Turning the knob from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, on {len(held_out)} "
        "questions it was not trained on."
    )
    found = sweep(model, domain, STRENGTHS, held_out, LEVELS, figure.with_suffix(".json"))
    draw_sweep(found, figure, f"alignvec demo: one knob, {domain}")
    for strength, rates in zip(found.strengths, found.rates, strict=True):
        bars = "  ".join(
            f"{level} {'#' * round(10 * rates.rate[level]):<10} {rates.rate[level]:.2f}"
            for level in LEVELS
        )
        _say(f"   {strength:+.1f}  {bars}")

    question = held_out[0].query
    _say("3. One question, three settings.\n" + _wrapped(question, "   Q  "))
    for strength, answer in _answers(model, domain, question, out / f"{domain}-answers.json"):
        _say(_wrapped(answer, f"   {strength:+g}  "))
    _say(
        f"\nDone in {time.monotonic() - started:.0f} s. The figure: {figure}.png\n"
        f"The vector: {vector_folder}; how it was trained: {aligned}/training.json\n"
        "(A model of 135M parameters learns the manner of an expert, not the knowledge.)\n"
        "Next:\n"
        f"  alignvec generate embedded --vector {domain}={vector_folder} --set {domain}=1.5 "
        '"your question"\n'
        f"  alignvec eval embedded --domain {domain} --vector {domain}={vector_folder} "
        f"--sweep {domain}=-3:3:0.6 -o sweep\n"
        "  alignvec align --help      a vector from your own preferences"
    )


def _answers(model: KnobModel, knob: str, question: str, file: Path) -> list[tuple[float, str]]:
    """Greedy answers at `SHOWN`."""
    settings = [{knob: strength} for strength in SHOWN]
    # Greedy answers of so small a model go round in circles without the penalty.
    answers = model.generate(
        [question] * len(SHOWN), settings, max_new_tokens=72, repetition_penalty=1.15
    )
    write_json(
        file, {"question": question, "answers": dict(zip(map(str, SHOWN), answers, strict=True))}
    )
    return list(zip(SHOWN, answers, strict=True))


def _wrapped(text: str, first: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 92, initial_indent=first, subsequent_indent=" " * len(first)
    )


def _say(text: str) -> None:
    print(text, flush=True)
