"""`alignvec generate`: answers under settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignvec.cli.inputs import knob_model
from alignvec.cli.options import AnyBase, AsJson, BaseArgument, Device, Dtype, Vectors, seed_option
from alignvec.cli.output import print_json, written

app = typer.Typer()

_COLDEST = 1e-4  # next to nothing cannot be divided by: what is colder is greedy


@app.command(
    epilog="Example: alignvec generate embedded --vector medical=medical-av "
    "--set medical=-1 --set medical=1 'Why does my knee hurt on stairs?'\n\n"
    "Example: ... --set medical=1 --schedule 0=1,32=0 (expert at first, the base from token 32 on)"
)
def generate(
    base: BaseArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.")],
    vector: Vectors = [],  # noqa: B006
    setting: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KNOB=STRENGTH,...", help="A setting, or @FILE; repeat to compare."
        ),
    ] = [],  # noqa: B006
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, seed_option("Seed of the sampling.")] = 0,
    mode: Annotated[
        str,
        typer.Option(
            help="fold (settings one after the other, in the weights), gate (one batch, beside "
            "the weights), or auto: gate if there are several."
        ),
    ] = "auto",
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN=FACTOR,...",
            help="Strengths that change as the answer grows; straight lines between the tokens.",
        ),
    ] = None,
    router: Annotated[
        Path | None,
        typer.Option(help="From `alignvec route`: only the knobs of the question's domain act."),
    ] = None,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question under one setting, or several side by side."""
    from alignvec.knobs.schedule import parse_schedule
    from alignvec.route.router import Router

    points = None if schedule is None else parse_schedule(schedule)
    model, settings = knob_model(base, vector, setting, any_base, dtype, device, mode)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "schedule": points}
    if router:
        options["router"] = Router.load(router)
    if temperature >= _COLDEST:
        import torch

        torch.manual_seed(seed)
        options |= {"do_sample": True, "temperature": temperature}
    answers = model.generate([question] * len(settings), settings, **options)
    if as_json:
        print_json(
            [
                {"setting": one, "answer": answer}
                for one, answer in zip(settings, answers, strict=True)
            ]
        )
    elif len(settings) == 1:
        typer.echo(answers[0])
    else:
        for one, answer in zip(settings, answers, strict=True):
            typer.echo(f"[{written(one)}]\n{answer}\n")
