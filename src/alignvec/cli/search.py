"""From behaviours to settings: `alignvec search`, `alignvec calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from alignvec.cli.inputs import (
    compared_levels,
    measured_model,
    records_of,
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
    Overwrite,
    Split,
    Vectors,
    seed_option,
)
from alignvec.cli.output import print_json, print_table
from alignvec.errors import AlignvecError

app = typer.Typer()


@app.command(
    epilog="Example: alignvec search embedded --vector medical=medical-av --vector legal=legal-av "
    "--target medical=expert,legal=avoidance -o setting.json\n\n"
    "Example: ... --router router -o behaviours.json (all behaviours, each knob on its own domain)"
)
def search(
    base: BaseArgument,
    out: Out,
    vector: Vectors = [],  # noqa: B006
    data: Data = "builtin",
    target: Annotated[
        list[str],
        typer.Option(
            metavar="DOMAIN=LEVEL,...",
            help="The behaviour that is wanted; repeat for several. Default: every domain that "
            "has a knob at every level.",
        ),
    ] = [],  # noqa: B006
    levels: Levels = None,
    method: Annotated[
        str,
        typer.Option(
            help="surface (a smooth model of the scores, fitted once), grid (the paper's) or "
            "optuna (asked anew for each target)."
        ),
    ] = "surface",
    passes: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Model evaluations it may take. Default: 8 for each knob that acts on a query "
            "(surface), 729 (grid), 24 a target (optuna).",
        ),
    ] = None,
    limits: Annotated[
        list[str],
        typer.Option("--limits", metavar="KNOB=LOW:HIGH", help="Default: -2:2; repeat."),
    ] = [],  # noqa: B006
    router: Annotated[
        Path | None,
        typer.Option(help="From `alignvec route`: each knob acts on its own domain's queries."),
    ] = None,
    queries: Annotated[
        int | None, typer.Option(min=1, help="At most so many queries a domain to search on.")
    ] = None,
    front: Annotated[
        bool,
        typer.Option(
            "--front", help="Of one target: also what it costs in abilities to have less of it."
        ),
    ] = False,
    seed: Annotated[int, seed_option("Of the points that are visited.")] = 0,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
    engine: Engine = "transformers",
    engine_args: EngineArgs = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """From a wanted behaviour to a setting, with the rates that it reaches.

    Searches on builtin data's validation part (of a file: all but its test part) and verifies on
    the test part. Writes the settings, and of several targets or a front a figure (PNG, SVG).
    """
    from alignvec.files import check_free, write_json
    from alignvec.knobs.domains import domain_of
    from alignvec.knobs.setting import parse_limits
    from alignvec.report.figure import figure_files
    from alignvec.report.search import behaviours_table, draw_behaviours, draw_front
    from alignvec.route.router import Router
    from alignvec.search.search import search as find
    from alignvec.search.search import split_for_search
    from alignvec.search.target import behaviours, parse_target

    bounds = {}
    for text in limits:
        knob, between = parse_limits(text)
        if knob in bounds:
            raise AlignvecError(f"knob '{knob}' has two --limits")
        bounds[knob] = between
    loaded, _ = vectors_and_settings(vector, [])
    if not loaded:
        raise AlignvecError("search takes one or more --vector")
    order = compared_levels(levels, data, loaded)
    records = records_of(data, order, None, "all", "all")
    domains = sorted({record.domain for record in records})
    targets = [parse_target(text, domains, order) for text in target]
    if not targets:
        turned = {domain_of(knob, vector) for knob, vector in loaded.items()}
        if not turned.intersection(domains):
            raise AlignvecError(
                f"the data is of {', '.join(domains)}, the knobs of {', '.join(sorted(turned))}; "
                "say what is wanted with --target DOMAIN=LEVEL"
            )
        targets = list(behaviours([d for d in domains if d in turned], order))
    wanted = {domain for one in targets for domain in one}
    drawn = front or len(targets) > 1
    figure = out.with_suffix("") if out.suffix == ".json" else out
    for file in (out, *(figure_files(figure) if drawn else ())):
        check_free(file, overwrite)
    searched, held_out = split_for_search(records, data, wanted, queries)
    model = measured_model(base, loaded, any_base, dtype, device, engine, engine_args)
    result = find(
        model, targets, searched, held_out, order, method, passes, bounds,
        Router.load(router) if router else None, seed, front,
    )  # fmt: skip
    write_json(out, result.to_json(), overwrite)
    if drawn:
        (draw_front if front else draw_behaviours)(result, figure)
    if as_json:
        print_json(result.to_json())
        return
    print_table(behaviours_table(result))
    for solution in result.solutions:
        if len(targets) == 1 or not solution.reached:
            typer.echo(str(solution))
    typer.echo(f"{result.summary}; written: {out}")


@app.command(
    epilog="Example: alignvec calibrate embedded --vector medical=medical-av --domain medical\n\n"
    "Then: alignvec generate embedded --vector medical=medical-av --set medical=80% '...'"
)
def calibrate(
    base: BaseArgument,
    vector: Annotated[
        str, typer.Option(metavar="KNOB=FOLDER", help="The vector; its metadata is written to.")
    ],
    data: Data = "builtin",
    domain: Domain = None,
    split: Split = None,
    levels: Levels = None,
    limits: Annotated[
        str, typer.Option(metavar="LOW:HIGH", help="The strengths to measure between.")
    ] = "-3:3",
    steps: Annotated[int, typer.Option(min=3, help="Strengths to measure.")] = 13,
    most_kl: Annotated[
        float, typer.Option(help="Safe: so many nats a token from the base on neutral text.")
    ] = 0.5,
    most_perplexity: Annotated[
        float, typer.Option(help="Safe: so many times the base's perplexity there.")
    ] = 1.5,
    answers: Answers = 8,
    dtype: Dtype = None,
    device: Device = None,
    engine: Engine = "transformers",
    engine_args: EngineArgs = None,
    as_json: AsJson = False,
) -> None:
    """Measure a knob once, so that a level, 80% or 7/10 can stand for its strength anywhere.

    Builtin data gives its validation part; a file, all of it.
    """
    from alignvec.base.seen import queries_told
    from alignvec.knobs.setting import parse_limits
    from alignvec.search.calibrate import calibrate as measure
    from alignvec.vector.store import write_calibration

    ((knob, folder),) = vector_sources([vector]).items()
    if not Path(folder).is_dir():
        raise AlignvecError(
            f"{folder} is no folder: a vector's calibration is written into its own"
        )
    _, (low, high) = parse_limits(f"{knob}={limits}")
    loaded, _ = vectors_and_settings([vector], [])
    order = compared_levels(levels, data, loaded)
    records = records_of(data, order, domain, split, "validation")
    anew = {knob: replace(loaded[knob], calibration=None)}  # nobody is warned of the old one
    model = measured_model(base, anew, False, dtype, device, engine, engine_args)
    found = measure(
        model, knob, records, order, (low, high), steps, most_kl, most_perplexity, answers
    )
    write_calibration(Path(folder), found.model_dump())
    if as_json:
        print_json(found.model_dump())
        return
    without = f", {' and '.join(found.safe_without)} not measured" if found.safe_without else ""
    at = ", ".join(f"{level} at {strength:g}" for level, strength in found.levels.items())
    typer.echo(
        f"{knob}: {at}; {order[-1]} from {found.top[0]:.0%} to {found.top[-1]:.0%}; safe from "
        f"{found.safe[0]:g} to {found.safe[1]:g}{without} "
        f"({queries_told(found.queries, found.seen)}); written: {folder}"
    )
