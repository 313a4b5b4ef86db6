"""`alignvec align`: preference training."""

from __future__ import annotations

import logging
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
    seed_option,
)
from alignvec.cli.output import print_json, print_table
from alignvec.cli.taught import held_out, passes_over, places_of, records_by_knob
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.line import Places
    from alignvec.data.records import Record
    from alignvec.evaluate.check import LevelCheck

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()


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
    seed: Annotated[
        int,
        seed_option("Order of the queries and start of the adapter."),
    ] = 0,
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
    places = places_of(data[0], levels, prefer)
    records = records_by_knob(data, domain, list(places), split, limit)
    vectors, _ = vectors_and_settings(beside, [])
    count = sum(map(len, records.values()))
    passes = epochs
    if passes is None:
        passes = 1.0 if one_sided else passes_over(count, len(places))
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
        asked = held_out(data, records, list(places), split)
        try:
            checks = _check(base, folders, asked, places, answers, dtype, device)
        except AlignvecError as error:  # what was trained is there all the same
            logger.warning("nobody has looked at the levels: %s", error)
    if as_json:
        record = read_json(out / RECORD)
        if len(records) > 1:
            record["knobs"] = {knob: read_json(out / knob / RECORD) for knob in records}
        print_json(record)
        return
    for knob, found in checks.items():
        for table in check_tables(knob, found):
            print_table(table)
        for check in found:
            if not check.sound:
                logger.warning("%s", broken(knob, check, found[0]))
    typer.echo(f"aligned model: {out}\nnext: alignvec extract {base} {out} -o VECTOR")


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
