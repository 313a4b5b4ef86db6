"""The vectors of a study, each trained once: ours along the knob, the paper's at its one end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignvec.align import AlignSettings, align
from alignvec.align.curriculum import pairs_along
from alignvec.base.checkpoint import RECORD
from alignvec.data.line import spaced
from alignvec.data.pairs import PreferencePair, preference_pairs
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.evaluate.measurable import Measurable
from alignvec.files import read_object, write_json
from alignvec.reproduce.item import Item, Shared, Work
from alignvec.reproduce.launch import align_on_all_gpus
from alignvec.reproduce.study import FAILED, SAFE, SAFETY, Study
from alignvec.vector.alignment_vector import AlignmentVector

TITLE = "Training"
ALONG, ONE_SIDED = "along", "one-sided"
_WHOLE = "model*.safetensors*"  # the weights of a checkpoint, and their index
WAYS = {ALONG: "trained along the knob", ONE_SIDED: "plain DPO at one end (the paper)"}


def turns(strengths: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Each way at each strength; at 0 every knob is the base, which stands once."""
    for way in WAYS:
        for strength in strengths:
            if strength or way == ALONG:
                yield way, strength


def items(study: Study) -> Iterator[Item]:
    """The bank of all domains, plain DPO a domain, and a safety vector of each kind."""
    yield _trained(study, ALONG, study.domains[0])
    for domain in study.domains:
        yield _trained(study, ONE_SIDED, domain)
    for way in WAYS:
        yield _trained(study, way, SAFETY)


def trainings(study: Study, way: str, domains: Sequence[str]) -> Shared:
    """What it takes to train the vectors of some domains, by training."""
    found = {}
    for domain in domains:
        of = study.domains if way == ALONG and domain != SAFETY else [domain]
        rows = sum(len(study.records(one, "train")) for one in of)
        times = study.scale.passes if way == ALONG else _epochs(study, domain)
        found[f"training {_name(study, way, domain)}"] = Work(trained=rows * times)
    return found


def turning(
    study: Study,
    way: str,
    setting: Mapping[str, float],
    domains: Sequence[str],
    stage: str = "base",
) -> Shared:
    """What it takes to train the knobs of a setting, and to measure it in some domains. At 0 every
    knob is the stage that it is put on.
    """
    turned = ",".join(f"{knob}={at:g}" for knob, at in sorted(setting.items()) if at)
    measuring = study.measuring(f"{stage} {way} {turned}" if turned else stage, domains)
    return {**trainings(study, way, list(setting)), **measuring}


def _trained(study: Study, way: str, domain: str) -> Item:
    def run() -> dict[str, Any]:
        vector(study, way, domain)
        record = record_of(study, _name(study, way, domain))
        return {key: record[key] for key in ("seconds", "pairs", "settings", "versions")} | {
            "last": record["curve"][-1]
        }

    shared = trainings(study, way, [domain])
    return Item(f"training/{_name(study, way, domain)}", run, shared=shared)


def vector(study: Study, way: str, domain: str) -> Path:
    """The folder of a domain's vector, trained if it is not there yet.

    Args:
        way: `along`, all domains of the data side by side in a bank, or `one-sided`, as in the
            paper: plain DPO on neighbouring levels, at lambda = 1.
    """

    def train() -> Path:
        aligned = _align(study, way, domain)
        in_bank = way == ALONG and domain != SAFETY and len(study.domains) > 1
        return aligned / domain if in_bank else aligned

    return extracted(study, f"{way}/{domain}", _name(study, way, domain), train)


def extracted(study: Study, vector: str, name: str, train: Callable[[], Path]) -> Path:
    """The folder of a vector; if it is not there, of what a training gives.

    A whole checkpoint, which is as large as its vector, goes once the vector is there; the record
    of the training stays.

    Args:
        vector: the folder's name among the vectors.
        name: of the training.
        train: gives the folder of the aligned model.
    """
    folder = study.out / "vectors" / vector
    if not folder.exists():
        AlignmentVector.extract(study.base, train()).save_pretrained(folder)
    for weights in _aligned(study, name).glob(_WHOLE):
        weights.unlink()
    return folder


def forget(study: Study, vector: str) -> None:
    """Remove a vector that nothing asks for again, if it is there."""
    shutil.rmtree(study.out / "vectors" / vector, ignore_errors=True)


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


def knobs_of(study: Study, way: str, domains: Sequence[str] = ()) -> Measurable:
    """The base with a knob for each domain, trained in one way."""
    return study.models.measured(vectors(study, way, domains or study.domains))


def vectors(study: Study, way: str, domains: Sequence[str]) -> dict[str, Path]:
    """The folder of each domain's vector; see `vector`."""
    return {domain: vector(study, way, domain) for domain in domains}


def aligned_model(
    study: Study, name: str, pairs: Sequence[PreferencePair], method: str, **options: Any
) -> Path:
    """The folder of a model trained on some pairs; trained if it is not there (any more).

    Args:
        options: of `align`; `epochs` is the study's unless given.

    Raises:
        NoNumbersError: the training diverged, now or when it was tried before.
    """
    out = _aligned(study, name)
    failed = out.with_name(f"{name}.json")
    if failed.exists():
        raise NoNumbersError(read_object(failed)[FAILED])
    if not any(out.rglob("*.safetensors")):
        settings = AlignSettings(
            method=method,
            epochs=options.pop("epochs", study.scale.epochs),
            rank=study.scale.rank,
            seed=study.seed,
            dtype=study.dtype if method == "lora" else None,
        )
        study.models.let_go()  # a training wants the memory
        train = align_on_all_gpus if method == "full" else align
        try:
            train(study.base, pairs, out, settings, device=study.device, overwrite=True, **options)
        except NoNumbersError as error:
            write_json(failed, {FAILED: f"{name}: {error}"})
            raise NoNumbersError(f"{name}: {error}") from error
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
