"""Part 5, transfer (the paper's Figure 4): domain vectors on another stage of the same base.

The other stage is the base aligned for safety with all its weights, so that no vector was made on
it. Per domain: level rates and safe rate against lambda, beside the same on the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from alignvec.data.pairs import preference_pairs
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.safety import measured_safety
from alignvec.reproduce.study import HARMLESS, SAFE, SAFETY, Study
from alignvec.reproduce.subject import Turned
from alignvec.reproduce.training import WAYS, aligned_model, turning, vectors

TITLE = "Transfer"
STAGES = ("base", "safety-aligned")


def items(study: Study) -> Iterator[Item]:
    """The other stage alone, then each domain's vectors on both."""
    rows = Work(trained=len(study.records(SAFETY, "train")) * study.scale.passes)
    aligned = {f"training {STAGES[1]}": rows}
    alone = {**aligned, **study.measuring(STAGES[1], [SAFETY, HARMLESS])}
    yield Item("transfer/stage", partial(_stage_alone, study), shared=alone)
    for domain in study.domains:
        for way in WAYS:
            for stage in STAGES:
                for strength in study.scale.few:
                    run = partial(_moved, study, way, stage, domain, strength)
                    kinds = [domain, SAFETY, HARMLESS]
                    shared = turning(study, way, {domain: strength}, kinds, stage)
                    shared = {**shared, **(aligned if stage != "base" else {})}
                    yield Item(f"transfer/{domain}/{way}/{stage}/{strength:g}", run, shared=shared)


def safety_stage(study: Study) -> str:
    """The folder of the base aligned for safety, all its weights trained."""
    pairs = list(preference_pairs(study.records(SAFETY, "train"), SAFE[::-1]))
    folder = aligned_model(study, STAGES[1], pairs, "full", epochs=study.scale.passes)
    return str(folder)


def _stage_alone(study: Study) -> dict[str, Any]:
    return measured_safety(study, Turned(study.models.measured({}, safety_stage(study)), {}))


def _moved(study: Study, way: str, stage: str, domain: str, strength: float) -> dict[str, Any]:
    """A domain's knob on a stage: the domain, and safety there."""
    base = None if stage == "base" else safety_stage(study)
    model = study.models.measured(vectors(study, way, [domain]), base)
    subject = Turned(model, {domain: strength})
    return {domain: study.measure(subject, domain), **measured_safety(study, subject)}
