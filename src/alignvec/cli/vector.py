"""The commands on vectors: extract, compress, fold, inspect, export."""

from __future__ import annotations

import logging
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from alignvec.cli.inputs import source_name, vector_sources, vectors_and_settings
from alignvec.cli.options import (
    AnyBase,
    AsJson,
    BaseArgument,
    Out,
    Overwrite,
    StoredDtype,
    VectorArgument,
    Vectors,
    check_apart,
    seed_option,
)
from alignvec.cli.output import print_json, print_table, written
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.vector.alignment_vector import AlignmentVector

logger = logging.getLogger("alignvec.cli")

app = typer.Typer()


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
        typer.Option(
            metavar="PATTERN",
            help="Tensors that may be on one side only, or of other shapes; repeat.",
        ),
    ] = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """The alignment vector: the aligned model's weights minus the base's; of a bank one a knob.

    Any size: it is read, subtracted and written a part at a time, and a killed run goes on.
    """
    from alignvec.base.dtypes import parse_dtype
    from alignvec.files import check_free, read_json
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.compress import compress as svd
    from alignvec.vector.extract import bank_knobs
    from alignvec.vector.store import METADATA

    parse_dtype(dtype, on_disk=True)
    check_apart(out, base, aligned)
    check_free(out, overwrite)
    knobs = bank_knobs(aligned)
    folders = {knob: (str(one), out / knob) for knob, one in knobs.items()} or {
        "knob": (aligned, out)
    }
    for source, folder in folders.values():
        vector = AlignmentVector.extract(base, source, name, allow_missing)
        if rank is not None:
            vector = svd(vector, rank)
        if knobs and as_json:  # one object at the end
            vector.save_pretrained(folder, dtype, overwrite)
        else:
            _save_vector(vector, folder, dtype, overwrite, as_json)
    if knobs and as_json:
        print_json({knob: read_json(folder / METADATA) for knob, (_, folder) in folders.items()})
    if not as_json:
        knob, (_, folder) = list(folders.items())[-1]  # the one that `vector` is
        typer.echo(
            f"next: alignvec eval {base}{_measured_on(vector)} --vector {knob}={folder} "
            f"--sweep {knob}=-1.5:1.5:0.5 -o sweep"
        )
    if vector.calibration and not vector.calibration.get("queries"):
        logger.warning(
            "nobody has looked at what the vector makes a model write: its safe range is where it "
            "was trained, not what was measured; see alignvec calibrate"
        )


def _measured_on(vector: AlignmentVector) -> str:
    """The options that say which data and levels a vector is about."""
    from alignvec.data.records import LEVELS
    from alignvec.data.sources import BUILTIN
    from alignvec.knobs.calibration import named_levels

    data = str(vector.training.get("data", BUILTIN))
    about = vector.training.get("domain") if data == BUILTIN else None
    levels = named_levels(vector.calibration) or list(LEVELS)
    found = {
        # Of a path the record has the last part.
        "data": None if data == BUILTIN else data if Path(data).exists() else "DATA",
        "domain": about,
        "levels": ",".join(levels) if levels != list(LEVELS) else None,
    }
    return "".join(f" --{option} {quote(str(value))}" for option, value in found.items() if value)


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
    from alignvec.base.dtypes import parse_dtype
    from alignvec.files import check_free
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.compress import compress as svd

    parse_dtype(dtype, on_disk=True)
    check_free(out, overwrite)
    full = AlignmentVector.from_pretrained(vector)
    small = svd(full, rank, energy, drop_rest)
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
        str,
        typer.Option(
            help="Merge method, by mergekit's names: task_arithmetic (or sum), ties, dare_linear "
            "(or dare), dare_ties."
        ),
    ] = "task_arithmetic",
    density: Annotated[
        float, typer.Option(help="Share of a vector's entries that ties and dare keep.")
    ] = 0.5,
    seed: Annotated[int, seed_option("Of what dare drops.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """A checkpoint of the base with its knobs turned, for tools that know no knobs.

    Any size: it is read, added and written a part at a time, and a killed run goes on.
    """
    from alignvec.base.identity import base_id
    from alignvec.files import check_free
    from alignvec.knobs.setting import check_setting, parse_setting
    from alignvec.vector.fold import fold as to_disk
    from alignvec.vector.merge import Merge

    merge = Merge(combine, density, seed)
    check_apart(out, base, *vector_sources(vector).values())
    check_free(out, overwrite)
    vectors, settings = vectors_and_settings(vector, setting)
    if len(settings) != 1 or not vectors:
        raise AlignvecError("fold takes one or more --vector and one --set")
    if any_base:  # units mean nothing on a base that is not a vector's own
        vectors = {knob: one.on(base_id(base)) for knob, one in vectors.items()}
        settings = [check_setting(parse_setting(setting[0]), vectors)]
    weighted = [(vectors[knob], strength) for knob, strength in settings[0].items()]
    to_disk(base, weighted, out, dtype, overwrite, not any_base, merge)
    typer.echo(f"checkpoint: {out} ({written(settings[0])})")


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
    from alignvec.report.vector import draw_norms, matrix_table, vector_summary
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.inspect import compare
    from alignvec.vector.inspect import inspect as look

    vectors = {source_name(path): AlignmentVector.from_pretrained(path) for path in vector}
    if len(vectors) < len(vector):
        raise AlignvecError("two vectors have the same name; give each folder a name of its own")
    found = {name: look(one) for name, one in vectors.items()}
    relation = compare(vectors) if len(vectors) > 1 else None
    if out is not None:
        for name, one in found.items():
            draw_norms(one, out.with_name(f"{out.name}-{name}"))
    if as_json:
        print_json({"vectors": found, **(relation or {})})
        return
    for name, one in found.items():
        typer.echo(vector_summary(name, one))
    if relation:
        for what in ("cosine", "sign_conflict"):
            print_table(matrix_table(what.replace("_", " "), relation[what]))


@app.command(epilog="Example: alignvec export medical-av --format peft -o medical-lora")
def export(
    vector: VectorArgument,
    out: Out,
    form: Annotated[
        str, typer.Option("--format", help="peft (a LoRA adapter folder) or gguf (llama.cpp).")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="For gguf, and of experts: the base, if it is not where the vector says."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """A low-rank vector as a LoRA adapter for other tools; its scaling is lambda."""
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.export import export as write

    write(AlignmentVector.from_pretrained(vector), form, out, base, overwrite)
    typer.echo(f"{form} adapter: {out}")


def _save_vector(
    vector: AlignmentVector, out: Path, dtype: str | None, overwrite: bool, as_json: bool
) -> None:
    from alignvec.files import read_json
    from alignvec.vector.store import METADATA

    vector.save_pretrained(out, dtype, overwrite)
    if as_json:
        print_json(read_json(out / METADATA))
    else:
        typer.echo(f"alignment vector: {out} ({vector.kind}, {len(vector.deltas)} tensors)")
