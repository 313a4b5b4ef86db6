"""The command line: each command parses, calls one capability, and prints what it found."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec import cli_data
from alignvec.cli_common import (
    AnyBase,
    AsJson,
    BaseArgument,
    Data,
    Device,
    Domain,
    Dtype,
    Out,
    Overwrite,
    Split,
    StoredDtype,
    VectorArgument,
    Vectors,
    check_apart,
    check_folder,
    print_json,
    print_table,
)
from alignvec.errors import AlignvecError, printable
from alignvec.progress import progress

if TYPE_CHECKING:
    from rich.table import Table

    from alignvec.data import Record
    from alignvec.knobs import KnobModel
    from alignvec.search import Found
    from alignvec.vector import AlignmentVector

app = typer.Typer(
    name="alignvec",
    help="Turn preferences into knobs on a language model.",
    epilog="Start with: alignvec demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(cli_data.app)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on failure.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
) -> None:
    """Turn preferences into knobs on a language model."""
    if debug:
        os.environ["ALIGNVEC_DEBUG"] = "1"
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("alignvec").setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"


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
        str, typer.Option(help="dpo, ipo, hinge, nca, bco, sppo, aot, apo_zero, ...")
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
    from alignvec.align import AlignSettings
    from alignvec.align import align as train
    from alignvec.data.pairs import anchor_pairs, parse_order, preference_pairs

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
    records = _records(data, order, domain, split, "train")[:limit]
    pairs = list(preference_pairs(records, order, all_pairs))
    logger.info("%d records, %d pairs (%s)", len(records), len(pairs), " > ".join(order))
    held = [record for one in hold for record in _records(data, order, one, split, "train")]
    if held:
        pairs += anchor_pairs(held, order, len(pairs))
    provenance = {
        "data": _source_name(data), "domain": domain, "prefer": order, "split": split, "held": hold,
    }  # fmt: skip
    train(base, pairs, out, settings, provenance=provenance, overwrite=overwrite, device=device)
    if as_json:
        from alignvec.files import read_json

        print_json(read_json(out / "training.json"))
    else:
        typer.echo(f"aligned model: {out}\nnext: alignvec extract {base} {out} -o VECTOR")


@app.command(
    epilog="Example: alignvec extract embedded medical-aligned -o medical-av\n\n"
    "Example: alignvec extract BASE ALIGNED --dtype int8 -o VECTOR"
)
def extract(
    base: BaseArgument,
    aligned: Annotated[
        str, typer.Argument(metavar="ALIGNED", help="A checkpoint or a LoRA adapter on the base.")
    ],
    out: Out,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    rank: Annotated[
        int | None, typer.Option(help="Compress to this rank (see alignvec compress).")
    ] = None,
    dtype: StoredDtype = None,
    allow_missing: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Tensors that may be on one side only; repeat."),
    ] = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """The alignment vector: the aligned model's weights minus the base's.

    Any size: it is read, subtracted and written a part at a time, and a killed run goes on.
    """
    from alignvec.files import check_free
    from alignvec.models import parse_dtype
    from alignvec.vector import AlignmentVector
    from alignvec.vector.compress import compress as svd

    parse_dtype(dtype, on_disk=True)
    check_apart(out, base, aligned)
    check_free(out, overwrite)
    with progress("comparing", "B") as advance:
        vector = AlignmentVector.extract(base, aligned, name, allow_missing, advance)
    if rank is not None:
        with progress("compressing", "weight") as advance:
            vector = svd(vector, rank, on_progress=advance)
    _save_vector(vector, out, dtype, overwrite, as_json)
    if not as_json:
        typer.echo(f"next: alignvec eval {base} --vector knob={out} --sweep knob=-3:3:0.6 -o sweep")


@app.command(epilog="Example: alignvec compress medical-av --rank 16 -o medical-av-r16")
def compress(
    vector: VectorArgument,
    out: Out,
    rank: Annotated[int | None, typer.Option(help="At most this rank a weight.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="The least rank that keeps this share of the norm squared.")
    ] = None,
    drop_rest: Annotated[
        bool,
        typer.Option("--drop-rest", help="Leave out norms, biases, embeddings: only an adapter."),
    ] = False,
    dtype: StoredDtype = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A vector's linear weights by their largest singular values (truncated SVD).

    What cannot be factored stays dense, or is listed and left out with --drop-rest.
    """
    from alignvec.files import check_free
    from alignvec.models import parse_dtype
    from alignvec.vector import AlignmentVector
    from alignvec.vector.compress import compress as svd

    parse_dtype(dtype, on_disk=True)
    check_free(out, overwrite)
    full = AlignmentVector.from_pretrained(vector)
    with progress("compressing", "weight") as advance:
        small = svd(full, rank, energy, drop_rest, advance)
    _save_vector(small, out, dtype, overwrite, as_json)
    dropped = [name for name in full.deltas if name not in small.deltas]
    if dropped and not as_json:
        typer.echo(f"left out {len(dropped)}: {', '.join(dropped)}")


@app.command(
    epilog="Example: alignvec fold embedded --vector medical=medical-av --set medical=0.7 "
    "-o medical-0.7\n\nExample: alignvec fold embedded --vector medical=medical-av "
    "--vector legal=legal-av --set medical=1,legal=1 --combine ties --density 0.3 -o both"
)
def fold(
    base: BaseArgument,
    out: Out,
    vector: Vectors = [],  # noqa: B006
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="KNOB=STRENGTH,...", help="The setting, or @FILE; one."),
    ] = [],  # noqa: B006
    any_base: AnyBase = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: the base's.")
    ] = None,
    combine: Annotated[
        str, typer.Option(help="How vectors make one change: sum, ties, dare or dare_ties.")
    ] = "sum",
    density: Annotated[
        float, typer.Option(help="Share of a vector's entries that ties and dare keep.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """A checkpoint of the base with its knobs turned, for tools that know no knobs.

    Any size: it is read, added and written a part at a time, and a killed run goes on.
    """
    from alignvec.files import check_free
    from alignvec.vector.combine import Combine
    from alignvec.vector.fold import fold as to_disk

    way = Combine(combine, density, seed)
    check_apart(out, base, *(text.partition("=")[2] for text in vector))
    check_free(out, overwrite)
    vectors, settings = _vectors_and_settings(vector, setting)
    if len(settings) != 1 or not vectors:
        raise AlignvecError("fold takes one or more --vector and one --set")
    turned = [(vectors[knob], strength) for knob, strength in settings[0].items()]
    with progress("folding", "B") as advance:
        to_disk(base, turned, out, dtype, overwrite, not any_base, advance, way)
    typer.echo(f"checkpoint: {out} ({_written(settings[0])})")


@app.command(epilog="Example: alignvec inspect medical-av legal-av -o vectors")
def inspect(
    vector: Annotated[
        list[str], typer.Argument(metavar="VECTOR...", help="Folders or hub ids of vectors.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the figures as OUT-NAME.png, .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is in a vector, where its norm lies, and how several relate."""
    from alignvec.vector import AlignmentVector
    from alignvec.vector.inspect import compare
    from alignvec.vector.inspect import inspect as look

    vectors = {_source_name(path): AlignmentVector.from_pretrained(path) for path in vector}
    if len(vectors) < len(vector):
        raise AlignvecError("two vectors have the same name; give each folder a name of its own")
    found = {name: look(one) for name, one in vectors.items()}
    relation = compare(vectors) if len(vectors) > 1 else None
    if out is not None:
        from alignvec.report.figures import draw_norms

        for name, one in found.items():
            draw_norms(one, out.with_name(f"{out.name}-{name}"))
    if as_json:
        print_json({"vectors": found, **(relation or {})})
        return
    for name, one in found.items():
        typer.echo(_summary(name, one))
    if relation:
        for what in ("cosine", "sign_conflict"):
            print_table(_matrix_table(what.replace("_", " "), relation[what]))


@app.command(epilog="Example: alignvec export medical-av --format peft -o medical-lora")
def export(
    vector: VectorArgument,
    out: Out,
    form: Annotated[
        str, typer.Option("--format", help="peft (a LoRA adapter folder) or gguf (llama.cpp).")
    ],
    base: Annotated[
        str | None, typer.Option(help="For gguf: the base, if it is not where the vector says.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """A low-rank vector as a LoRA adapter for other tools; its scaling is lambda."""
    from alignvec.vector import AlignmentVector
    from alignvec.vector.export import export as write

    write(AlignmentVector.from_pretrained(vector), form, out, base, overwrite)
    typer.echo(f"{form} adapter: {out}")


@app.command(
    epilog="Example: alignvec generate embedded --vector medical=medical-av "
    "--set medical=-2 --set medical=2 'Why does my knee hurt on stairs?'\n\n"
    "Example: ... --set medical=2 --schedule 0=1,32=0 (expert at first, the base from token 32 on)"
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
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
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
    from alignvec.knobs.route import Router
    from alignvec.knobs.schedule import parse_schedule

    points = None if schedule is None else parse_schedule(schedule)
    model, settings = _knob_model(base, vector, setting, any_base, dtype, device, mode)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "schedule": points}
    if router:
        options["router"] = Router.load(router)
    if temperature:
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
            typer.echo(f"[{_written(one)}]\n{answer}\n")


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
    from alignvec import evaluate as ev
    from alignvec.data.pairs import parse_order
    from alignvec.files import write_json
    from alignvec.knobs.setting import parse_sweep

    order = parse_order(levels)
    turn = parse_sweep(sweep) if sweep else None
    if len(setting) > 1:
        raise AlignvecError("eval measures one setting at a time; join knobs with commas")
    records = _records(data, order, domain, split, "test")[:limit]
    check_folder(out)
    model, settings = _knob_model(base, vector, setting, any_base, dtype, device)
    model.set(settings[0])
    if turn is None:
        rows = ev.response_rows(model.tokenizer, records, order)
        with progress("scoring", "query") as advance:
            counted = _counting(advance, len(rows))
            rates = ev.preference_rates(model.model, rows, order, on_progress=counted)
        result: dict[str, Any] = {"setting": settings[0], "levels": order, **asdict(rates)}
        write_json(out / "rates.json", result)
        table = _rates_table(order, [(_written(settings[0]), rates)])
        written = [out / "rates.json"]
    else:
        from alignvec.report.figures import draw_sweep

        knob, strengths = turn
        with progress("sweeping", "query") as advance:
            found = ev.sweep(model, knob, strengths, records, order, out / "sweep.json", advance)
        draw_sweep(found, out / "sweep", f"{_source_name(data)} {domain or ''}".strip())
        result = found.to_json()
        rows_of = zip(found.strengths, found.rates, strict=True)
        table = _rates_table(order, [(f"{knob}={s:g}", rates) for s, rates in rows_of])
        table.caption = "; ".join(
            f"{level}: at most {rate:.2f} (at {strength:g}), Spearman {found.spearman(level):.2f}"
            for level in order
            for strength, rate in [found.best(level)]
        )
        written = [out / "sweep.json", out / "sweep.png", out / "sweep.svg"]
    if as_json:
        print_json(result)
        return
    print_table(table)
    typer.echo("written: " + ", ".join(str(path) for path in written))


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
    levels: Annotated[
        str, typer.Option(help="The levels of the data, from low to high.")
    ] = "avoidance,generic,expert",
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
    seed: Annotated[int, typer.Option(help="Of the points that are visited.")] = 0,
    any_base: AnyBase = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """From a wanted behaviour to a setting, with the rates that it reaches.

    Searches on builtin data's validation part (of a file: all but its test part) and verifies on
    the test part. Writes the settings, and of several targets or a front a figure (PNG, SVG).
    """
    from alignvec import search as find
    from alignvec.data.pairs import parse_order
    from alignvec.files import write_json
    from alignvec.knobs import KnobModel
    from alignvec.knobs.route import Router, domain_of
    from alignvec.knobs.setting import parse_limits
    from alignvec.report.figures import draw_behaviours, draw_front
    from alignvec.search.search import split_for_search

    order = parse_order(levels)
    box = dict(parse_limits(text) for text in limits)
    loaded, _ = _vectors_and_settings(vector, [])
    if not loaded:
        raise AlignvecError("search takes one or more --vector")
    records = _records(data, order, None, "all", "all")
    domains = sorted({record.domain for record in records})
    targets = [find.parse_target(text, domains, order) for text in target]
    if not targets:
        turned = [domain_of(knob, vector) for knob, vector in loaded.items()]
        targets = list(find.behaviours([d for d in domains if d in turned], order))
    wanted = {domain for one in targets for domain in one}
    searched, held_out = split_for_search(records, data, wanted, queries)
    model = KnobModel.from_pretrained(base, loaded, dtype, device, not any_base)
    read = Router.load(router) if router else None
    with progress("searching", "pass") as advance, progress("verifying", "target") as verified:
        result = find.search(
            model, targets, searched, held_out, order, method, passes, box, read, seed, front,
            advance, verified,
        )  # fmt: skip
    write_json(out, result.to_json())
    if front:
        draw_front(result, out.with_suffix(""))
    elif len(targets) > 1:
        draw_behaviours(result, out.with_suffix(""))
    if as_json:
        print_json(result.to_json())
        return
    print_table(_behaviours_table(result.method, result.front or result.found))
    for found in result.found:
        if len(targets) == 1 or not found.reached:
            typer.echo(str(found))
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
    levels: Annotated[
        str, typer.Option(help="The levels of the data, from low to high.")
    ] = "avoidance,generic,expert",
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
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a knob once, so that a level, 80% or 7/10 can stand for its strength anywhere.

    Builtin data gives its validation part; a file, all of it.
    """
    from alignvec.data.pairs import parse_order
    from alignvec.knobs.setting import parse_limits
    from alignvec.search.calibrate import calibrate as measure
    from alignvec.vector.store import write_calibration

    order = parse_order(levels)
    knob, _, folder = vector.partition("=")
    _, (low, high) = parse_limits(f"{knob}={limits}")
    records = _records(data, order, domain, split, "validation")
    model, _ = _knob_model(base, [vector], [], False, dtype, device)
    with progress("calibrating", "pass") as advance:
        found = measure(
            model, knob, records, order, (low, high), steps, most_kl, most_perplexity, advance
        )
    write_calibration(Path(folder), found.model_dump())
    if as_json:
        print_json(found.model_dump())
        return
    at = ", ".join(f"{level} at {strength:g}" for level, strength in found.levels.items())
    typer.echo(
        f"{knob}: {at}; {order[-1]} from {found.top[0]:.0%} to {found.top[-1]:.0%}; safe from "
        f"{found.safe[0]:g} to {found.safe[1]:g} ({found.queries} queries); written: {folder}"
    )


@app.command(epilog="Example: alignvec route embedded --data builtin -o router")
def route(
    base: BaseArgument,
    out: Out,
    data: Data = "builtin",
    sure: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability a query has no domain.")
    ] = 0.5,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A classifier from a query to its domain, so that a knob acts on its own domain alone.

    Linear, on the base's own hidden states; trained on all but the data's test part, which gives
    the accuracy that is reported.
    """
    from alignvec.data import split_of
    from alignvec.files import check_free
    from alignvec.knobs import KnobModel
    from alignvec.knobs.route import Router

    check_free(out, overwrite)
    records = _records(data, [], None, "all", "all")
    model = KnobModel.from_pretrained(base, {}, dtype, device)
    train, test = (
        [record for record in records if (split_of(record.id) == "test") == held_out]
        for held_out in (False, True)
    )
    queries, domains = [r.query for r in train], [r.domain for r in train]
    router = Router.fit(model, queries, domains, sure)
    found = router.domain(model, [record.query for record in test])
    right = sum(record.domain == domain for record, domain in zip(test, found, strict=True))
    router.save(out, overwrite)
    result = {"domains": router.domains, "train": len(train), "test": len(test), "right": right,
              "unsure": found.count(None)}  # fmt: skip
    if as_json:
        print_json(result)
        return
    typer.echo(
        f"router: {out} ({', '.join(router.domains)}); {right} of {len(test)} unseen queries "
        f"right, {found.count(None)} left without a domain"
    )


@app.command(epilog="Example: alignvec demo --out alignvec-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that it makes.")] = Path(
        "alignvec-demo"
    ),
    domain: Annotated[str, typer.Option(help="medical, financial or legal.")] = "medical",
) -> None:
    """The whole way on a real model: train a vector, turn it, watch the answers change.

    Runs on the embedded 135M model, a few minutes on 2 cores; a second run takes what the first
    one trained and measured.
    """
    from alignvec.demo import run

    run(out, domain)


logger = logging.getLogger("alignvec.cli")
_LINE = 1000  # characters of an error, a screen at most


def _records(
    data: str, levels: list[str], domain: str | None, split: str | None, builtin_split: str
) -> list[Record]:
    from alignvec.data import BUILTIN, read_records

    if split is None and data == BUILTIN:
        split = builtin_split
    return list(read_records(data, levels, domain, None if split == "all" else split))


def _default_order(data: str) -> str:
    from alignvec.data.records import level_names

    names = level_names(data)
    return "chosen,rejected" if {"chosen", "rejected"} <= set(names) else "expert,generic,avoidance"


def _source_name(data: str) -> str:
    return Path(data).name


def _vectors_and_settings(
    vectors: list[str], settings: list[str]
) -> tuple[dict[str, AlignmentVector], list[dict[str, float]]]:
    """Vectors by knob, and the settings asked for, checked against them."""
    from alignvec.knobs import parse_setting
    from alignvec.knobs.setting import check_setting
    from alignvec.vector import AlignmentVector

    loaded: dict[str, AlignmentVector] = {}
    for text in vectors:
        knob, equals, path = text.partition("=")
        if not (knob and equals and path):
            raise AlignvecError(f"'{text}' is no vector; write KNOB=PATH, as in medical=medical-av")
        if knob in loaded:
            raise AlignvecError(f"knob '{knob}' has two vectors")
        loaded[knob] = AlignmentVector.from_pretrained(path)
    return loaded, [check_setting(parse_setting(text), loaded) for text in settings]


def _knob_model(
    base: str,
    vectors: list[str],
    settings: list[str],
    any_base: bool,
    dtype: str | None,
    device: str | None,
    mode: str = "auto",
) -> tuple[KnobModel, list[dict[str, float]]]:
    """The model with its knobs, and the settings asked for (all zero if none), checked first."""
    from alignvec.knobs import KnobModel

    loaded, parsed = _vectors_and_settings(vectors, settings)
    model = KnobModel.from_pretrained(base, loaded, dtype, device, not any_base, mode)
    return model, parsed or [dict.fromkeys(loaded, 0.0)]


def _save_vector(
    vector: AlignmentVector, out: Path, dtype: str | None, overwrite: bool, as_json: bool
) -> None:
    from alignvec.files import read_json

    with progress("writing", "B") as advance:
        vector.save_pretrained(out, dtype, overwrite, advance)
    if as_json:
        print_json(read_json(out / "alignment_vector.json"))
    else:
        typer.echo(f"alignment vector: {out} ({vector.kind}, {len(vector.deltas)} tensors)")


def _summary(name: str, found: dict[str, Any]) -> str:
    """A vector in a few lines, and its largest modules with their share of the squared norm."""
    rank = f", rank {found['rank']}" if found["rank"] else ""
    energy = f", {found['energy']:.1%} of the energy" if found["energy"] else ""
    lines = [
        f"{name}: {found['kind']}{rank}{energy}, {found['dtype']}, norm {found['norm']:.4g}",
        f"  {found['tensors']} tensors, {found['parameters']:,} weights, on base "
        f"{found['base']['id']} ({found['base']['fingerprint'][:8]})",
    ]
    total = found["norm"] ** 2 or 1.0
    shares = {
        module: sum(norm**2 for norm in layers.values()) / total
        for module, layers in found["norms"].items()
    }
    for module, share in sorted(shares.items(), key=lambda item: -item[1])[:12]:
        lines.append(f"  {share:6.1%}  {module}")
    return "\n".join(lines)


def _matrix_table(title: str, matrix: dict[str, dict[str, float | None]]) -> Table:
    from rich.table import Table

    table = Table("", *matrix, title=title)
    for name, row in matrix.items():
        table.add_row(name, *("-" if x is None else f"{x:.3f}" for x in row.values()))
    return table


def _rates_table(levels: list[str], lines: list[tuple[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=f"preference rates, {lines[0][1].queries} queries (95% interval)")
    table.add_column("setting")
    for level in levels:
        table.add_column(level, justify="right")
    for setting, rates in lines:
        top = max(rates.rate, key=rates.rate.__getitem__)
        cells = [
            f"{rates.rate[level]:.2f} ({low:.2f}-{high:.2f})"
            for level in levels
            for low, high in [rates.interval[level]]
        ]
        styled = [
            f"[bold]{cell}[/bold]" if level == top else cell
            for level, cell in zip(levels, cells, strict=True)
        ]
        table.add_row(setting, *styled)
    return table


def _behaviours_table(method: str, settings: list[Found]) -> Table:
    """A line a setting: of each domain the rate of the wanted level, and what is retained."""
    from rich.table import Table

    domains = sorted({domain for found in settings for domain in found.target})
    table = Table(title=f"rates of the wanted level on unseen queries ({method})")
    for column in ("setting", *domains, "reached", "neutral text: KL", "perplexity"):
        table.add_column(column, overflow="fold")
    for found in settings:
        cells = []
        for domain in domains:
            level = found.target.get(domain)
            if level is None:
                cells.append("-")
                continue
            low, high = found.rates[domain].interval[level]
            cells.append(f"{level} {found.rates[domain].rate[level]:.2f} ({low:.2f}-{high:.2f})")
        reached = "firmly" if found.firmly else "yes" if found.reached else "no"
        kept = found.retained
        cost = [f"{kept.kl:.3f}", f"x {kept.perplexity:.2f}"] if kept else []
        table.add_row(_written(found.setting), *cells, reached, *cost)
    return table


def _written(setting: dict[str, float]) -> str:
    return ",".join(f"{knob}={strength:g}" for knob, strength in setting.items()) or "base"


def _counting(advance: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        advance(done, total)

    return add


def main() -> None:
    """Run the command line; every failure is one line on stderr and a fitting exit code."""
    try:
        app()
    except AlignvecError as error:
        _fail(str(error), error)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        _fail(f"this needs {error.name}; install alignvec[all]", error)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", error)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (a traceback with alignvec --debug ...)", error)
    finally:
        gc.freeze()  # the interpreter's last collection takes .35 s over torch, for nothing


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("ALIGNVEC_DEBUG"):
        raise error
    print(error_line(message), file=sys.stderr)
    sys.exit(1)


def error_line(message: str) -> str:
    """The one line of a failure. A file may have put anything into it: nothing of that may turn
    the terminal's colours, move its cursor or fill its screen.
    """
    line = "error: " + printable(" ".join(message.split()))
    return line if len(line) <= _LINE else line[: _LINE - 3] + "..."
