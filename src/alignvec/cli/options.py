"""Arguments and options that several commands share, and checks on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from alignvec.errors import AlignvecError

_RECORDS = (
    "'builtin', a file (.jsonl, .json, .csv, .tsv, .parquet), a dataset folder, or a hub "
    "dataset id."
)


def seed_option(told: str) -> Any:
    """A seed that every library takes; `told` says of what."""
    return typer.Option(min=0, max=2**32 - 1, help=told)


BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="'embedded', a checkpoint folder, a .gguf file, or a hub id."
    ),
]
Vectors = Annotated[
    list[str],
    typer.Option(
        "--vector", metavar="KNOB=PATH", help="A vector and the name of its knob; repeat."
    ),
]
Data = Annotated[
    str,
    typer.Option(help=_RECORDS),
]
Levels = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,...,HIGH",
        help="The levels of the data, from low to high. Default: avoidance,generic,expert; of "
        "data that is not builtin those that the vectors were trained for.",
    ),
]
Domain = Annotated[str | None, typer.Option(help="Only records of this domain.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="train, validation, test or all; a hash of each record's id decides. By default "
        "builtin data gives its train part to align and its test part to eval; a file, all of it."
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. Default: the fastest on this machine."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: CUDA if there is one.")]
Engine = Annotated[
    Literal["transformers", "vllm"],
    typer.Option(
        help="What runs the model. vllm: in an environment that has it, vectors of low rank alone."
    ),
]
EngineArgs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Arguments of vLLM's LLM, as in '{\"tensor_parallel_size\": 8}'.",
    ),
]
AnyBase = Annotated[
    bool, typer.Option("--any-base", help="Put a vector on a base that is not its own.")
]
Answers = Annotated[
    int,
    typer.Option(
        min=0,
        help="Queries that are answered, greedily and sampled, to see whether the text stays "
        "sound; 0 for none.",
    ),
]
StoredDtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16, or int8 (matrices in 8 bits, a scale a row) on disk. "
        "Default: as it is; deltas float32."
    ),
]
VectorArgument = Annotated[
    str, typer.Argument(metavar="VECTOR", help="The folder or hub id of a vector.")
]
SpectrumOption = Annotated[
    str,
    typer.Option(
        "--spectrum",
        metavar="NAME|FILE",
        help="The levels and topics: medical, financial, legal, tone, detail, or a YAML file.",
    ),
]
MaybeSpectrum = Annotated[
    str | None,
    typer.Option("--spectrum", metavar="NAME|FILE", help="Whose levels, and what they mean."),
]
DataArgument = Annotated[
    str,
    typer.Argument(metavar="DATA", help=_RECORDS),
]
Spectra = Annotated[
    list[str],
    typer.Option(
        "--spectrum",
        metavar="NAME|FILE",
        help="Of a domain of the data; repeat. Those that ship with alignvec are known.",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="A server that speaks OpenAI's API, up to /v1; 'openai' is OpenAI itself. The key "
        "is read from OPENAI_API_KEY.",
    ),
]
LevelNames = Annotated[
    str | None, typer.Option("--levels", metavar="LOW,...,HIGH", help="Default: the data's own.")
]

StateFile = Annotated[
    Path,
    typer.Option(
        "--state", metavar="FILE", help="SQLite: the profiles and keys of `alignvec serve`."
    ),
]
STATE = Path("alignvec-serve.sqlite")


def check_apart(out: Path, *inputs: str) -> None:
    """Refuse to write over what is read."""
    paths = [Path(source).expanduser() for source in inputs]
    if any(path.exists() and out.exists() and out.samefile(path) for path in paths):
        raise AlignvecError(f"{out} is also an input; choose another name")


def check_folder(out: Path, *names: str) -> None:
    """Refuse, before any is written, a file where a folder goes, and `names` in it that are taken
    by what is not ours.
    """
    from alignvec.files import check_free

    if out.exists() and not out.is_dir():
        raise AlignvecError(f"{out} is a file; -o takes a folder")
    for name in names:
        check_free(out / name, overwrite=True)
