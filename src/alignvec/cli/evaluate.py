"""`alignvec eval`, `alignvec leak`: what a setting does, a knob from end to end, all domains."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec.cli.inputs import (
    compared_levels,
    measured_model,
    records_of,
    source_name,
    vector_sources,
    vectors_and_settings,
)
from alignvec.cli.options import (
    Answers,
    AnyBase,
    AsJson,
    BaseArgument,
    Data,
    Device,
    Domain,
    Dtype,
    Engine,
    EngineArgs,
    Levels,
    Out,
    Split,
    Vectors,
    check_folder,
)
from alignvec.cli.output import print_json, print_table, written
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.records import Record

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()


@app.command(
    name="eval",
    epilog="Example: alignvec eval embedded --data builtin --domain medical --vector "
    "medical=medical-av --sweep medical=-1.5:1.5:0.5 -o medical-sweep",
)
def evaluate(
    base: BaseArgument,
    out: Out,
    vector: Vectors = [],  # noqa: B006
    data: Data = "builtin",
    domain: Domain = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records.")] = None,
    levels: Levels = None,
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="KNOB=STRENGTH,...", help="Measure this setting, or @FILE."),
    ] = [],  # noqa: B006
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KNOB=START:STOP:STEP", help="Measure a knob from end to end."),
    ] = None,
    answers: Answers = 8,
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Another model, to say how likely it finds the answers. Default: "
            "the base with its knobs at 0.",
        ),
    ] = None,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
    engine: Engine = "transformers",
    engine_args: EngineArgs = None,
    as_json: AsJson = False,
) -> None:
    """Preference rates: which level the model finds most likely, and what it writes beside.

    Writes rates.json and answers.json, or with --sweep sweep.json and a figure (PNG, SVG). A killed
    sweep goes on where it was.
    """
    from alignvec.base.load import load_base
    from alignvec.base.seen import count_seen, queries_told
    from alignvec.evaluate.rates import rates_at, response_rows
    from alignvec.evaluate.sweep import sweep as measure
    from alignvec.evaluate.text import AnswerProbe, qualities_json, unsound
    from alignvec.files import write_json
    from alignvec.knobs.calibration import named_levels
    from alignvec.knobs.setting import parse_setting, parse_sweep
    from alignvec.report.evaluate import (
        draw_sweep,
        rates_table,
        sweep_table,
        sweep_text_table,
        text_table,
    )

    turn = parse_sweep(sweep) if sweep else None
    if len(setting) > 1:
        raise AlignvecError("eval measures one setting at a time; join knobs with commas")
    loaded, _ = vectors_and_settings(vector, setting)
    order = compared_levels(levels, data, loaded)
    records = records_of(data, order, domain, split, "test")[:limit]
    names = ("sweep.json", "sweep.png", "sweep.svg") if turn else ("rates.json", "answers.json")
    check_folder(out, *names)
    model = measured_model(base, loaded, any_base, dtype, device, engine, engine_args)
    model.set(parse_setting(setting[0]) if setting else {})
    turned = model.setting
    for knob, stored in model.vectors.items():
        own = named_levels(stored.calibration)
        if own and own != order:
            logger.warning(
                "knob '%s' has the levels %s; these rates are of others: --levels",
                knob, ", ".join(own),
            )  # fmt: skip
    probe = None
    if answers:
        read_by = load_base(reader, dtype, device) if reader else None
        asked = [record.prompt for record in records[:answers]]
        probe = AnswerProbe(model, asked, read_by)
    if turn is None:
        rows = response_rows(model.tokenizer, records, order)
        rates = rates_at(model, turned, rows, order)
        seen = count_seen(
            [vector.training for vector in model.vectors.values()], [r.prompt for r in records]
        )
        result: dict[str, Any] = {
            "setting": turned, "levels": order, **asdict(rates), "seen_in_training": seen,
        }  # fmt: skip
        files = [out / "rates.json"]
        told = queries_told(rates.queries, seen) if model.vectors else None
        tables = [rates_table(order, [(written(turned), rates)], told)]
        if probe:
            text, base_text = probe(turned), probe(dict.fromkeys(turned, 0.0))
            top = rates.top[0]
            references = probe.quality([record.levels[top] for record in records[:answers]])
            why = unsound(text["greedy"], base_text["greedy"], references)
            result |= {
                "text": qualities_json(text),
                "base": qualities_json(base_text),
                "sound": why is None,
            }
            files.append(out / "answers.json")
            said = {"queries": probe.queries, **probe.answers(turned)}
            write_json(files[-1], said, overwrite=True)
            lines = [("base", base_text), (written(turned), text)]
            tables.append(text_table(lines, {1: why} if why else {}))
        write_json(files[0], result, overwrite=True)
    else:
        knob, strengths = turn
        found = measure(model, knob, strengths, records, order, out / "sweep.json", probe)
        draw_sweep(found, out / "sweep", f"{source_name(data)} {domain or ''}".strip())
        result = found.to_json()
        tables = [sweep_table(found), *filter(None, [sweep_text_table(found)])]
        files = [out / "sweep.json", out / "sweep.png", out / "sweep.svg"]
    if as_json:
        print_json(result)
        return
    for table in tables:
        print_table(table)
    typer.echo("written: " + ", ".join(str(path) for path in files))


@app.command(
    epilog="Example: alignvec leak embedded --vector medical=bank-av/medical --vector "
    "legal=bank-av/legal"
)
def leak(
    base: BaseArgument,
    vector: Vectors = [],  # noqa: B006
    data: Data = "builtin",
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records a domain.")] = None,
    levels: Levels = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """What each knob does to each domain and to neutral text, alone, at each of its levels.

    The matrix goes into the metadata of each vector, beside its calibration.
    """
    from alignvec.base.seen import count_seen, queries_told
    from alignvec.evaluate.leak import measure_leak
    from alignvec.knobs.calibration import Calibration
    from alignvec.knobs.model import KnobModel
    from alignvec.report.evaluate import leak_table
    from alignvec.vector.store import write_calibration

    sources = vector_sources(vector)
    loaded, _ = vectors_and_settings(vector, [])
    if not loaded:
        raise AlignvecError("leak takes one or more --vector")
    order = compared_levels(levels, data, loaded)
    by_domain: dict[str, list[Record]] = {}
    for record in records_of(data, order, None, split, "test"):
        by_domain.setdefault(record.domain, []).append(record)
    model = KnobModel.from_pretrained(base, loaded, dtype, device)
    known = {
        knob: Calibration.read(knob, vector.calibration) for knob, vector in model.vectors.items()
    }
    for knob, calibration in known.items():
        if list(calibration.levels) != order:
            raise AlignvecError(f"knob '{knob}' has the levels {', '.join(calibration.levels)}")
    records = [record for some in by_domain.values() for record in some[:limit]]
    found = measure_leak(model, {knob: one.levels for knob, one in known.items()}, records)
    for one in found:
        folder = Path(sources[one.knob])
        if folder.is_dir():
            told = known[one.knob].model_copy(update={"leak": one.for_calibration()})
            write_calibration(folder, told.model_dump())
        else:
            logger.warning("knob '%s': %s is no folder, so nothing is kept", one.knob, folder)
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        seen = count_seen(
            [vector.training for vector in model.vectors.values()], [r.prompt for r in records]
        )
        print_table(leak_table(found, queries_told(len(records), seen)))
