"""The vectors of a study, each trained once: ours along the knob, the paper's at its one end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignvec.align import AlignSettings, align
from alignvec.align.curriculum import pairs_along
from alignvec.base.checkpoint import RECORD
from alignvec.data.line import spaced
from alignvec.data.pairs import PreferencePair, preference_pairs
from alignvec.errors import AlignvecError
from alignvec.files import read_object
from alignvec.knobs.model import KnobModel
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.study import SAFE, SAFETY, Study
from alignvec.vector.alignment_vector import AlignmentVector

TITLE = "Training"
ALONG, ONE_SIDED = "along", "one-sided"
WAYS = {ALONG: "trained along the knob", ONE_SIDED: "plain DPO at one end (the paper)"}


def turns(strengths: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Each way at each strength; at 0 every knob is the base, which stands once."""
    for way in WAYS:
        for strength in strengths:
            if strength or way == ALONG:
                yield way, strength


def items(study: Study) -> Iterator[Item]:
    """The bank of all domains, plain DPO a domain, and a safety vector of each kind."""
    scale = study.scale
    rows = {domain: len(study.records(domain, "train")) for domain in (*study.domains, SAFETY)}
    bank = sum(rows[domain] for domain in study.domains)
    yield _trained(study, ALONG, study.domains[0], bank * scale.passes)
    for domain in study.domains:
        yield _trained(study, ONE_SIDED, domain, rows[domain] * scale.epochs)
    for way in WAYS:
        yield _trained(study, way, SAFETY, rows[SAFETY] * scale.passes)


def _trained(study: Study, way: str, domain: str, rows: float) -> Item:
    def run() -> dict[str, Any]:
        vector(study, way, domain)
        record = record_of(study, _name(study, way, domain))
        return {key: record[key] for key in ("seconds", "pairs", "settings", "versions")} | {
            "last": record["curve"][-1]
        }

    return Item(f"training/{_name(study, way, domain)}", run, Work(trained=rows))


def vector(study: Study, way: str, domain: str) -> Path:
    """The folder of a domain's vector, trained if it is not there yet.

    Args:
        way: `along`, all domains of the data side by side in a bank, or `one-sided`, as in the
            paper: plain DPO on neighbouring levels, at lambda = 1.
    """
    folder = study.out / "vectors" / way / domain
    if not folder.exists():
        aligned = _align(study, way, domain)
        if way == ALONG and domain != SAFETY and len(study.domains) > 1:
            aligned = aligned / domain
        AlignmentVector.extract(study.base, aligned).save_pretrained(folder)
    return folder


def record_of(study: Study, name: str) -> dict[str, Any]:
    """The record of a training by its name; of a bank it is said once.

    Raises:
        AlignvecError: what was trained is not there any more.
    """
    folder = _aligned(study, name)
    for file in sorted(folder.rglob(RECORD)):
        return read_object(file)
    raise AlignvecError(
        f"{folder / RECORD} is missing: what the training took is known from it; put it back, or "
        "start a study in another folder"
    )


def seconds_of(study: Study, way: str, domain: str) -> float:
    """What the training of a domain's vector took; of a bank its share."""
    together = len(study.domains) if way == ALONG and domain != SAFETY else 1
    return float(record_of(study, _name(study, way, domain))["seconds"]) / together


def knobs_of(study: Study, way: str, domains: Sequence[str] = ()) -> KnobModel:
    """The base with a knob for each domain, trained in one way."""
    return study.knobs({d: vector(study, way, d) for d in domains or study.domains})


def aligned_model(
    study: Study, name: str, pairs: Sequence[PreferencePair], method: str, **options: Any
) -> Path:
    """The folder of a model trained on some pairs; trained if it is not there yet.

    Args:
        options: of `align`; `epochs` is the study's unless given.
    """
    out = _aligned(study, name)
    if not out.exists():
        settings = AlignSettings(
            method=method,
            epochs=options.pop("epochs", study.scale.epochs),
            rank=study.scale.rank,
            seed=study.seed,
            dtype=study.dtype if method == "lora" else None,
        )
        align(study.base, pairs, out, settings, device=study.device, **options)
    return out


def _align(study: Study, way: str, domain: str) -> Path:
    name = _name(study, way, domain)
    if way == ONE_SIDED:
        levels = study.levels_of(domain)
        pairs = list(preference_pairs(study.records(domain, "train"), list(levels)[::-1]))
        method = "lora" if domain == SAFETY else study.scale.method
        return aligned_model(
            study, name, pairs, method, provenance={"domain": domain}, epochs=_epochs(study, domain)
        )
    domains = [SAFETY] if domain == SAFETY else study.domains
    places = spaced(SAFE) if domain == SAFETY else study.places
    records = {one: study.records(one, "train") for one in domains}
    pairs = pairs_along(records, places, study.scale.passes, study.seed)
    # Along a knob the pairs are those of all passes.
    told = {"domain": domain} if len(domains) == 1 else {}
    return aligned_model(study, name, pairs, "lora", knobs=domains, provenance=told, epochs=1.0)


def _epochs(study: Study, domain: str) -> float:
    """As many steps of safety's few pairs as along the knob."""
    return study.scale.passes if domain == SAFETY else study.scale.epochs


def _name(study: Study, way: str, domain: str) -> str:
    bank = way == ALONG and domain != SAFETY
    return f"{way}-{'bank' if bank else domain}"


def _aligned(study: Study, name: str) -> Path:
    return study.out / "aligned" / name
