"""`alignvec align`: preference training."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from alignvec.cli.inputs import records_of, source_name
from alignvec.cli.options import (
    AsJson,
    BaseArgument,
    Data,
    Device,
    Domain,
    Dtype,
    Out,
    Overwrite,
    Split,
)
from alignvec.cli.output import print_json

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()


@app.command(
    epilog="Example: alignvec align embedded --data builtin --domain medical "
    "--prefer expert,generic,avoidance -o medical-aligned"
)
def align(
    base: BaseArgument,
    out: Out,
    data: Data = "builtin",
    prefer: Annotated[
        str | None,
        typer.Option(
            help="Levels, the most preferred first. Default: chosen,rejected where the data has "
            "them, else expert,generic,avoidance."
        ),
    ] = None,
    domain: Domain = None,
    split: Split = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Also pairs of levels that are not neighbours.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records.")] = None,
    hold: Annotated[
        list[str],
        typer.Option(
            metavar="DOMAIN",
            help="Keep the knob from moving this domain: as many pairs again, of its records and "
            "in both directions, want a margin of zero; repeat.",
        ),
    ] = [],  # noqa: B006
    loss: Annotated[
        str,
        typer.Option(
            help="dpo, ipo, hinge, nca, bco, sppo, aot, apo_zero, apo_down or discopop, as in TRL."
        ),
    ] = "dpo",
    method: Annotated[str, typer.Option(help="lora (an adapter) or full (all weights).")] = "lora",
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate", "--lr", help="Default: 0.016 over the steps, at most 1e-3."
        ),
    ] = None,
    beta: Annotated[float, typer.Option(help="Pull towards the base.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 8,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    layers: Annotated[
        float, typer.Option(help="Share of the blocks that the adapter changes, from the top.")
    ] = 0.75,
    two_sided: Annotated[
        bool,
        typer.Option(
            "--two-sided/--one-sided",
            help="Train the adapter at strength -1 too, with every preference turned around (lora "
            "only). One-sided is plain DPO, as in the paper.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Order of the queries and start of the adapter.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a base to prefer some responses to others (DPO and its kin).

    Writes a LoRA adapter (or, with --method full, a checkpoint), a training record and its figure.
    A killed run, started again with the same options, goes on where it was.
    """
    from alignvec.align.run import RECORD
    from alignvec.align.run import align as train
    from alignvec.align.settings import AlignSettings
    from alignvec.data.pairs import anchor_pairs, parse_order, preference_pairs
    from alignvec.files import read_json
    from alignvec.report.align import draw_training

    settings = AlignSettings(
        loss=loss,
        method=method,
        epochs=epochs,
        learning_rate=learning_rate,
        beta=beta,
        batch_size=batch_size,
        rank=rank,
        layers=layers,
        two_sided=two_sided,
        seed=seed,
        dtype=dtype,
    )
    order = parse_order(prefer or _default_order(data))
    records = records_of(data, order, domain, split, "train")[:limit]
    pairs = list(preference_pairs(records, order, all_pairs))
    logger.info("%d records, %d pairs (%s)", len(records), len(pairs), " > ".join(order))
    held = [record for one in hold for record in records_of(data, order, one, split, "train")]
    if held:
        pairs += anchor_pairs(held, order, len(pairs))
    provenance = {
        "data": source_name(data), "domain": domain, "prefer": order, "split": split, "held": hold,
    }  # fmt: skip
    train(base, pairs, out, settings, provenance=provenance, overwrite=overwrite, device=device)
    record = read_json(out / RECORD)
    draw_training(record, out / "training")
    if as_json:
        print_json(record)
    else:
        typer.echo(f"aligned model: {out}\nnext: alignvec extract {base} {out} -o VECTOR")


def _default_order(data: str) -> str:
    from alignvec.data.records import level_names

    names = level_names(data)
    return "chosen,rejected" if {"chosen", "rejected"} <= set(names) else "expert,generic,avoidance"
