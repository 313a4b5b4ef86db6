"""`alignvec align`: preference training."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec.cli.inputs import records_of, source_name, vectors_and_settings
from alignvec.cli.options import (
    Answers,
    AsJson,
    BaseArgument,
    Device,
    Dtype,
    Out,
    Overwrite,
    Split,
)
from alignvec.cli.output import print_json, print_table
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.line import Places
    from alignvec.data.records import Record
    from alignvec.evaluate.check import LevelCheck

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()
_NAME = re.compile(r"(?!.*\.(json|png|svg|md)$)[\w-][\w .-]{0,99}")
_NAMES = "letters, digits, spaces and . _ - make one, and it is none of a file of the output"
_CHECKED = 12  # records that the rates of the check are measured on


@app.command(
    epilog="Example: alignvec align embedded --data builtin --domain medical -o medical-aligned\n\n"
    "A bank: alignvec align embedded --domain medical,financial,legal -o bank-aligned\n\n"
    "As in the paper: alignvec align embedded --domain medical --one-sided -o medical-dpo"
)
def align(
    base: BaseArgument,
    out: Out,
    data: Annotated[
        list[str],
        typer.Option(
            help="'builtin', a file (.jsonl, .json, .csv, .tsv, .parquet), a dataset folder, or a "
            "hub dataset id; several: a knob for each."
        ),
    ] = ["builtin"],  # noqa: B006
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL=STRENGTH,...",
            help="Where on the knob which level is, as in avoidance=-1,generic=0.5,expert=1; or "
            "their names, from low to high, to space them so. Default: rejected,chosen where the "
            "data has them, else avoidance,generic,expert.",
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(help="The levels' names the other way round: the most preferred first."),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="DOMAIN,...",
            help="Only records of this domain; several, with commas, give a bank: a knob for "
            "each, trained side by side to leave the others alone.",
        ),
    ] = None,
    beside: Annotated[
        list[str],
        typer.Option(
            "--beside",
            metavar="KNOB=PATH",
            help="A finished vector to train beside: it stays, and the new knob leaves it alone.",
        ),
    ] = [],  # noqa: B006
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records a knob.")] = None,
    hold: Annotated[
        list[str],
        typer.Option(
            metavar="DOMAIN", help="Records of this domain, too, stay as the base has them; repeat."
        ),
    ] = [],  # noqa: B006
    loss: Annotated[
        str | None,
        typer.Option(
            help="simpo, softmax or orpo, or one of TRL's: dpo, dpo_norm, ipo, hinge, nca, bco, "
            "sppo, aot, apo_zero, apo_down, discopop. Default: simpo; with --one-sided dpo."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="lora (an adapter) or full (all weights).")] = "lora",
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the records. Default: as many as there are levels, up to 6 over few "
            "records; 1 with --one-sided."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            help="Default: 1e-3; with --one-sided .016 over the steps, at most 1e-3; both times "
            "the gain of the layers in that of the embedded model. With --method full: 5e-6.",
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Steepness. Default: 10 for mean log-likelihoods, 0.1 for sums."),
    ] = None,
    likelihood: Annotated[
        float | None,
        typer.Option(
            help="Weight of the preferred response's likelihood, which keeps the text sound. "
            "Default: 1.5; with --one-sided 0."
        ),
    ] = None,
    own_answers: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the steps after which the model's own answers are what is not "
            "preferred; 1: never. Along the knob, with a loss of ours.",
        ),
    ] = 0.33,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Pairs a step. Default: those of two queries; with --one-sided 8."),
    ] = None,
    max_length: Annotated[
        int,
        typer.Option(
            min=2,
            help="Tokens of a prompt with its response, at most what the model has positions for; "
            "what is longer is cut, and counted.",
        ),
    ] = 1024,
    rank: Annotated[int | None, typer.Option(help="Of a knob. Default: 16; in a bank 4.")] = None,
    layers: Annotated[
        float, typer.Option(help="Share of the blocks that the adapter changes, from the top.")
    ] = 0.75,
    one_sided: Annotated[
        bool,
        typer.Option(
            "--one-sided/--two-sided",
            help="Train at strength 1 only, on the pairs of neighbouring levels: plain DPO, as in "
            "the paper. Full weights are always trained so.",
        ),
    ] = False,
    all_pairs: Annotated[
        bool,
        typer.Option("--all-pairs", help="With --one-sided: also levels that are no neighbours."),
    ] = False,
    answers: Answers = 8,
    seed: Annotated[int, typer.Option(help="Order of the queries and start of the adapter.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a base along the knob: which response it prefers depends on how far it is turned.

    Writes a LoRA adapter (of several knobs one each; with --method full, a checkpoint), a training
    record and its figure. A killed run, started again with the same options, goes on where it was.
    Then every level is looked at where training put it: its rate, and whether the text is sound.
    """
    from accelerate import PartialState

    from alignvec.align.curriculum import pairs_along
    from alignvec.align.run import align as train
    from alignvec.align.settings import AlignSettings
    from alignvec.base.checkpoint import RECORD
    from alignvec.data.pairs import preference_pairs
    from alignvec.files import read_json
    from alignvec.knobs.calibration import trained_calibration
    from alignvec.report.align import broken, check_tables, draw_training

    one_sided = one_sided or method == "full"
    places = _places(data[0], levels, prefer)
    records = _records_by_knob(data, domain, list(places), split, limit)
    vectors, _ = vectors_and_settings(beside, [])
    count = sum(map(len, records.values()))
    passes = epochs
    if passes is None:
        passes = 1.0 if one_sided else _passes(count, len(places))
    settings = AlignSettings(
        loss=loss,
        method=method,
        epochs=passes,
        learning_rate=learning_rate,
        beta=beta,
        likelihood=likelihood,
        own_answers=own_answers,
        batch_size=batch_size,
        max_length=max_length,
        rank=rank,
        layers=layers,
        seed=seed,
        dtype=dtype,
    )
    apart = len(places) - 1  # pairs of a record
    if one_sided:
        if len(records) > 1 or vectors or hold:
            raise AlignvecError("several knobs are trained along the knobs: not with --one-sided")
        (some,) = records.values()
        pairs = list(preference_pairs(some, list(places)[::-1], all_pairs))
    else:
        held = [r for one in hold for r in records_of(data[0], list(places), one, split, "train")]
        pairs = pairs_along(records, places, passes, seed, held, beside=list(vectors))
    logger.info(
        "%d records, %d pairs (%s)",
        count,
        len(pairs) if one_sided else count * apart,
        " < ".join(places if one_sided else (f"{level} at {at:g}" for level, at in places.items())),
    )
    provenance: dict[str, Any] = {
        "data": ",".join(map(source_name, data)), "domain": domain, "split": split, "held": hold,
        "prefer": list(places)[::-1],
    }  # fmt: skip
    if not one_sided:
        provenance |= {
            "pairs": count * apart,
            "rows": len(pairs) // len(places),  # with every pass, and those that are held
            "levels": places,
            "calibration": trained_calibration(places).model_dump(),
        }
    train(
        base, pairs, out, settings,
        knobs=[] if one_sided else list(records), beside=vectors,
        provenance=provenance, overwrite=overwrite, device=device,
    )  # fmt: skip
    if not PartialState().is_main_process:
        return  # the rest is for one of several
    draw_training(read_json(out / RECORD), out / "training")
    checks = {}
    if answers and not one_sided:
        folders = {knob: out / knob if len(records) > 1 else out for knob in records}
        held_out = _held_out(data, records, list(places), split)
        checks = _check(base, folders, held_out, places, answers, dtype, device)
    if as_json:
        print_json(read_json(out / RECORD))
        return
    for knob, found in checks.items():
        for table in check_tables(knob, found):
            print_table(table)
        for check in found:
            if not check.sound:
                logger.warning("%s", broken(knob, check, found[0]))
    typer.echo(f"aligned model: {out}\nnext: alignvec extract {base} {out} -o VECTOR")


def _held_out(
    data: list[str], records: dict[str, list[Record]], levels: list[str], split: str | None
) -> dict[str, list[Record]]:
    """Knob -> records for the check: of the validation part if the train part was trained on, else
    those that were trained on."""
    from alignvec.data.sources import BUILTIN

    found = {}
    sources = data if len(data) > 1 else data * len(records)
    for source, (knob, some) in zip(sources, records.items(), strict=True):
        found[knob] = some[:_CHECKED]
        if split == "train" or (split is None and source == BUILTIN):
            domain = some[0].domain
            with contextlib.suppress(AlignvecError):  # too few records to have such a part
                found[knob] = records_of(source, levels, domain, "validation", "")[:_CHECKED]
    return found


def _check(
    base: str,
    folders: dict[str, Path],
    held_out: dict[str, list[Record]],
    places: Places,
    answers: int,
    dtype: str | None,
    device: str | None,
) -> dict[str, list[LevelCheck]]:
    """Look at every level of every knob, and write what was seen into the training records."""
    from alignvec.base.checkpoint import RECORD
    from alignvec.evaluate.check import check_levels, safe_range
    from alignvec.files import read_json, write_json
    from alignvec.knobs.model import KnobModel
    from alignvec.vector.alignment_vector import AlignmentVector

    vectors = {k: AlignmentVector.extract(base, folder) for k, folder in folders.items()}
    model = KnobModel.from_pretrained(base, vectors, dtype, device)
    checks = {}
    for knob, folder in folders.items():
        found = checks[knob] = check_levels(model, knob, held_out[knob], places, answers)
        record = read_json(folder / RECORD)
        record["calibration"] |= {
            "queries": len(held_out[knob]), "seen": found[0].seen, "safe": safe_range(found),
        }  # fmt: skip
        write_json(folder / RECORD, record | {"checked": [check.to_json() for check in found]})
    return checks


def _places(data: str, levels: str | None, prefer: str | None) -> Places:
    from alignvec.data.line import parse_places, spaced
    from alignvec.data.pairs import parse_order
    from alignvec.data.records import LEVELS, level_names

    if levels and prefer:
        raise AlignvecError("--levels and --prefer say the same; give one of them")
    if levels:
        return parse_places(levels)
    if prefer:
        return spaced(parse_order(prefer)[::-1])
    names = set(level_names(data))
    # One of the two is enough to tell: the other may be what is missing.
    is_pair = names & {"chosen", "rejected"} and not names >= set(LEVELS)
    return spaced(["rejected", "chosen"] if is_pair else LEVELS)


def _records_by_knob(
    data: list[str], domain: str | None, levels: list[str], split: str | None, limit: int | None
) -> dict[str, list[Record]]:
    """Knob -> its records: of a domain each, or of a file each."""
    domains: list[str | None] = [*domain.split(",")] if domain else [None]
    if len(data) > 1 and len(domains) > 1:
        raise AlignvecError("several domains come from one --data, or one from each of several")
    found: dict[str, list[Record]] = {}
    for source, one in itertools.product(data, domains):
        records = records_of(source, levels, one and one.strip(), split, "train")[:limit]
        names = {record.domain for record in records}
        knob = names.pop() if len(names) == 1 else Path(source).stem
        if len(data) * len(domains) > 1 and not _NAME.fullmatch(knob):
            raise AlignvecError(f"'{knob}' cannot be the name of a knob's folder: {_NAMES}")
        if knob in found:
            raise AlignvecError(f"two knobs would be called '{knob}'; give each its own domain")
        found[knob] = records
    return found


def _passes(records: int, levels: int) -> float:
    """Every record at every level once, and more over few records: a line takes some 200 rows."""
    return max(levels, min(6.0, 216 / records))
