"""What people say of records: `alignvec data annotate`, `alignvec data agreement`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from alignvec.cli.inputs import levels_of
from alignvec.cli.options import (
    AsJson,
    Domain,
    LevelNames,
    MaybeSpectrum,
    Overwrite,
    check_folder,
    seed_option,
)
from alignvec.cli.output import print_json, print_table
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.annotation.store import Annotations

app = typer.Typer()


@app.command(
    epilog="Example: alignvec data annotate records.jsonl --spectrum medical --limit 30 "
    "--answers answers.sqlite\n\n"
    "Example: alignvec data annotate --answers answers.sqlite --import label-studio=export.json"
)
def annotate(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="Records; may be left out once there is a file of answers."
        ),
    ] = None,
    answers: Annotated[
        Path,
        typer.Option(metavar="FILE", help="SQLite; made on the first start, then gone on with."),
    ] = Path("answers.sqlite"),
    spectrum: MaybeSpectrum = None,
    levels: LevelNames = None,
    domain: Domain = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records.")] = None,
    stratified: Annotated[
        bool,
        typer.Option("--stratified/--random", help="Of the limit, as many of each domain or not."),
    ] = True,
    seed: Annotated[int, seed_option("Of the choice of records.")] = 0,
    exports: Annotated[
        list[str],
        typer.Option(
            "--export",
            metavar="FORMAT=FILE",
            help="Write the items for label-studio or argilla, and start no page.",
        ),
    ] = [],  # noqa: B006
    imports: Annotated[
        list[str],
        typer.Option(
            "--import",
            metavar="FORMAT=FILE",
            help="Take in the answers that one of them exported as JSON, and start no page.",
        ),
    ] = [],  # noqa: B006
    host: Annotated[str, typer.Option(help="0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    overwrite: Overwrite = False,
) -> None:
    """A web page on which people say which level a response is, without being told.

    Any number of annotators, each by a name and in an order of their own; every answer is on the
    disk before the next response is shown. Whoever can open the page can answer under any name.
    """
    from alignvec.data.annotation.formats import FORMATS, export_items, import_answers
    from alignvec.data.annotation.store import Annotations, items_of, sample
    from alignvec.data.quality.expected import likely_levels
    from alignvec.data.records import read_records

    def file_of(text: str) -> tuple[str, Path]:
        form, _, path = text.partition("=")
        if form not in FORMATS or not path:
            raise AlignvecError(f"'{text}' is not FORMAT=FILE; formats: {', '.join(FORMATS)}")
        return form, Path(path)

    written, read = [file_of(text) for text in exports], [file_of(text) for text in imports]
    order, about = levels_of(levels, spectrum)
    items = []
    if data is not None:
        order = order or list(likely_levels(list(read_records(data, (), domain))))
        records = list(read_records(data, order, domain))
        items = items_of(sample(records, limit or len(records), seed, stratified), order, seed)
    store = Annotations(answers, items)
    for form, path in written:
        files = export_items(store, form, path, about, overwrite)
        typer.echo(f"{len(store.items)} items: {', '.join(map(str, files))}")
    for form, path in read:
        taken = import_answers(store, form, path)
        store.add(taken)
        names = {answer.annotator for answer in taken}
        typer.echo(f"{len(taken)} answers by {len(names)} annotators: {answers}")
    if not (written or read):
        _serve(store, about, host, port)


def _serve(store: Annotations, about: Mapping[str, str], host: str, port: int) -> None:
    try:
        from alignvec.data.annotation.page import serving
    except ImportError as error:
        raise AlignvecError("the page needs Gradio 6: pip install 'alignvec[ui]'") from error
    with serving(store, about, host, port) as address, suppress(KeyboardInterrupt):
        typer.echo(f"{len(store.items)} items at {address} (Ctrl+C stops; answers: {store.path})")
        Event().wait()
    count = Counter(answer.annotator for answer in store.answers())
    done = ", ".join(f"{name} {number}" for name, number in count.items()) or "none"
    typer.echo(f"answers: {done}; next: alignvec data agreement {store.path}")


@app.command(epilog="Example: alignvec data agreement answers.sqlite -o agreement")
def agreement(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="From `data annotate`; or a table (.csv, .tsv, .jsonl, .parquet) with the columns "
            "item, annotator, level and, if known, intended.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="A folder for the numbers, the confusion matrix, the disagreements."
        ),
    ] = None,
    spectrum: MaybeSpectrum = None,
    levels: LevelNames = None,
    seed: Annotated[int, seed_option("Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """How far the annotators agree, with each other and with the intended level.

    Raw agreement, Cohen's kappa of each pair (plain, linear, quadratic), Fleiss' kappa,
    Krippendorff's alpha (nominal, ordinal), with 95% intervals from a bootstrap over items.
    """
    from alignvec.data.annotation import agreement as measures
    from alignvec.files import write_json, write_text
    from alignvec.report.data import agreement_summary, agreement_table, draw_confusion

    if out is not None:
        check_folder(out, "agreement.json", "disagreements.jsonl", "confusion.png", "confusion.svg")
    ratings = measures.read_ratings(answers, levels_of(levels, spectrum)[0])
    found = measures.agreement(ratings, seed)
    differing = measures.disagreements(ratings)
    if out is not None:
        write_json(out / "agreement.json", found, overwrite=True)
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in differing)
        write_text(out / "disagreements.jsonl", "".join(lines), overwrite=True)
        if found["confusion"]:
            draw_confusion(found["confusion"], out / "confusion")
    if as_json:
        print_json(found)
        return
    print_table(agreement_table(found))
    typer.echo(agreement_summary(found))
    for remark in found["remarks"]:
        typer.echo(f"note: {remark}")
    where = f"; written: {out}" if out else ""
    typer.echo(f"answers differ on {len(differing)} of {len(ratings.chosen)} items{where}")
