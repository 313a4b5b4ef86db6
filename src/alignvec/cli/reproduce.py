"""`alignvec reproduce`: the paper's study, or a part of it, and its report."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvec.cli.inputs import levels_of, vllm_loader
from alignvec.cli.options import (
    AsJson,
    Data,
    Device,
    Dtype,
    EndpointOption,
    Engine,
    EngineArgs,
    LevelNames,
    seed_option,
)
from alignvec.cli.output import print_json, print_table
from alignvec.errors import AlignvecError, check_known

if TYPE_CHECKING:
    from alignvec.reproduce.study import Study

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()
_REPORT = "report"


@app.command(
    epilog="Example: alignvec reproduce --preset small -o study\n\n"
    "Example: alignvec reproduce --model embedded --model gemma3-270m -o study\n\n"
    "Example: alignvec reproduce --part single --part leak --data mine.jsonl -o study\n\n"
    "Example: alignvec reproduce --preset paper --dry-run"
)
def reproduce(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the study; a second run goes on.")
    ] = None,
    preset: Annotated[str, typer.Option(help="small (2 cores), paper (the paper's scale).")] = (
        "small"
    ),
    model: Annotated[
        list[str],
        typer.Option(
            metavar="BASE",
            help="A base to study; repeat: then each also says how likely it finds what the other "
            "writes. Default: the preset's.",
        ),
    ] = [],  # noqa: B006
    part: Annotated[
        list[str],
        typer.Option(metavar="PART", help="Only this part; repeat. --dry-run lists them."),
    ] = [],  # noqa: B006
    data: Data = "builtin",
    levels: LevelNames = None,
    reader: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="The other model, of a study of one."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A model behind --endpoint that judges the answers as well."
        ),
    ] = None,
    endpoint: EndpointOption = None,
    seed: Annotated[int, seed_option("Of training.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="What would run, where, and how long it may take.")
    ] = False,
    engine: Engine = "transformers",
    engine_args: EngineArgs = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The study of the paper: trained, measured by likelihood and by what is written, reported.

    Every result is written once; a killed study goes on where it was. With --engine vllm what
    only writes and scores runs there; training and all that looks into a model do not. Writes
    OUT/MODEL for each model, and over all of them OUT/report with report.html, report.md,
    report.json and tables/.
    """
    from alignvec.base.source import base_name
    from alignvec.data.synthesis.endpoint import Endpoint
    from alignvec.reproduce.run import PARTS, run
    from alignvec.reproduce.scale import BASES, PRESETS
    from alignvec.reproduce.study import Study

    check_known("preset", preset, PRESETS)
    for one in part:
        check_known("part", one, PARTS)
    if out is None and not dry_run:
        raise AlignvecError("where to? give -o FOLDER, or --dry-run")
    models = model or [BASES[preset]]
    names = [base_name(one).replace("/", "--") for one in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AlignvecError(f"two models would be called '{twice}'; give each its own name")
    if _REPORT in names:
        raise AlignvecError(f"a model cannot be called '{_REPORT}': the report goes there")
    if reader in models:
        raise AlignvecError(
            f"the reader is another model than those of the study; '{reader}' would read what it "
            "writes itself"
        )
    if (judge is None) != (endpoint is None):
        raise AlignvecError("a judge is --judge NAME behind --endpoint URL; give both")
    chat = Endpoint(None if endpoint == "openai" else endpoint, judge, 0.0) if judge else None
    load = vllm_loader(engine, engine_args, dtype)
    studies = []
    for one, name in zip(models, names, strict=True):
        others = [other for other in models if other != one]
        studies.append(
            Study(
                one, (out or Path()) / name, PRESETS[preset], data,
                levels_of(levels, None)[0], reader or next(iter(others), None), chat,
                dtype=dtype, device=device, seed=seed, engine=load,
            )
        )  # fmt: skip
    for study in studies if out else ():
        study.check_folder()  # of all of them before the first takes its hours
    if out is None or dry_run:
        _tell(studies, part, as_json)
        return
    from alignvec.report.study import summary, write_report
    from alignvec.reproduce.note import NOTE

    report = out / _REPORT
    try:
        for study in studies:
            with study.opened():
                run(study, part)
    except Exception:  # of hours of results there is a report, whatever comes after them
        if begun := [study.out for study in studies if (study.out / NOTE).exists()]:
            with suppress(AlignvecError):
                write_report(begun, report)
                logger.warning("the report of what is there: %s", report / "report.html")
        raise
    write_report([study.out for study in studies], report)
    if as_json:
        print_json(summary(report))
        return
    typer.echo(f"report: {report / 'report.html'}")


def _tell(studies: list[Study], parts: list[str], as_json: bool) -> None:
    from alignvec.report.plan import plan_json, plan_table

    if as_json:
        print_json([plan_json(study, parts) for study in studies])
        return
    for study in studies:
        print_table(plan_table(study, parts))
