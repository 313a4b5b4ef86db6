"""`alignvec eval`: preference rates of a setting, or along a knob."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from alignvec.cli.inputs import knob_model, records_of, source_name
from alignvec.cli.options import (
    AnyBase,
    AsJson,
    BaseArgument,
    Data,
    Device,
    Domain,
    Dtype,
    Out,
    Split,
    Vectors,
    check_folder,
)
from alignvec.cli.output import print_json, print_table, written
from alignvec.errors import AlignvecError

app = typer.Typer()


@app.command(
    name="eval",
    epilog="Example: alignvec eval embedded --data builtin --domain medical --vector "
    "medical=medical-av --sweep medical=-3:3:0.6 -o medical-sweep",
)
def evaluate(
    base: BaseArgument,
    out: Out,
    vector: Vectors = [],  # noqa: B006
    data: Data = "builtin",
    domain: Domain = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records.")] = None,
    levels: Annotated[
        str, typer.Option(help="The levels to compare, from low to high.")
    ] = "avoidance,generic,expert",
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="KNOB=STRENGTH,...", help="Measure this setting, or @FILE."),
    ] = [],  # noqa: B006
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KNOB=START:STOP:STEP", help="Measure a knob from end to end."),
    ] = None,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Preference rates: which level the model finds most likely, over a set of queries.

    Writes rates.json, or with --sweep sweep.json and a figure (PNG, SVG). A killed sweep goes on
    where it was.
    """
    from alignvec.data.pairs import parse_order
    from alignvec.evaluate.rates import preference_rates, response_rows
    from alignvec.evaluate.sweep import sweep as measure
    from alignvec.files import write_json
    from alignvec.knobs.setting import parse_sweep
    from alignvec.report.evaluate import draw_sweep, rates_table, sweep_table

    order = parse_order(levels)
    turn = parse_sweep(sweep) if sweep else None
    if len(setting) > 1:
        raise AlignvecError("eval measures one setting at a time; join knobs with commas")
    records = records_of(data, order, domain, split, "test")[:limit]
    check_folder(out)
    model, settings = knob_model(base, vector, setting, any_base, dtype, device)
    model.set(settings[0])
    if turn is None:
        rows = response_rows(model.tokenizer, records, order)
        rates = preference_rates(model.model, rows, order)
        result: dict[str, Any] = {"setting": settings[0], "levels": order, **asdict(rates)}
        write_json(out / "rates.json", result)
        table = rates_table(order, [(written(settings[0]), rates)])
        files = [out / "rates.json"]
    else:
        knob, strengths = turn
        found = measure(model, knob, strengths, records, order, out / "sweep.json")
        draw_sweep(found, out / "sweep", f"{source_name(data)} {domain or ''}".strip())
        result = found.to_json()
        table = sweep_table(found)
        files = [out / "sweep.json", out / "sweep.png", out / "sweep.svg"]
    if as_json:
        print_json(result)
        return
    print_table(table)
    typer.echo("written: " + ", ".join(str(path) for path in files))
