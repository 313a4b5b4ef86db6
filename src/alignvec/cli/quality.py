"""What records are worth: `alignvec data clean`, `alignvec data stats`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from alignvec.cli.inputs import levels_of
from alignvec.cli.options import (
    AsJson,
    DataArgument,
    LevelNames,
    Out,
    Overwrite,
    Spectra,
    check_apart,
    check_folder,
)
from alignvec.cli.output import print_json, print_table
from alignvec.errors import AlignvecError

app = typer.Typer()


def _list_rules(wanted: bool) -> None:
    if wanted:
        from alignvec.data.quality.rules import RULES

        for name, rule in RULES.items():
            typer.echo(f"{name:16}{rule.about}")
        raise typer.Exit


@app.command(
    epilog="Example: alignvec data clean records.jsonl --spectrum medical -o clean.jsonl\n\n"
    "Example: alignvec data clean records.jsonl --skip personal --skip length -o clean.jsonl"
)
def clean(
    data: DataArgument,
    out: Out,
    spectra: Spectra = [],  # noqa: B006
    levels: LevelNames = None,
    skip: Annotated[
        list[str], typer.Option(metavar="RULE", help="A rule to leave out; repeat.")
    ] = [],  # noqa: B006
    rules: Annotated[
        bool,
        typer.Option("--rules", callback=_list_rules, is_eager=True, help="List them and exit."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Leave out the records that break a rule, and say which and why.

    What is kept stays as it came. What is rejected goes to NAME.rejected.jsonl beside it, with the
    rule and the reason.
    """
    from alignvec.data.quality.clean import clean as judge
    from alignvec.data.quality.clean import rejected_path
    from alignvec.data.spectrum import read_spectrum
    from alignvec.files import check_free
    from alignvec.report.data import rejected_table

    if out.suffix.lower() in (".csv", ".tsv", ".parquet", ".arrow", ".gz"):
        raise AlignvecError(f"{out}: what is kept is written as JSON Lines; call it .jsonl")
    for path in (out, rejected_path(out)):
        check_apart(path, data)
        check_free(path, overwrite)
    known = [read_spectrum(name) for name in spectra]
    cleaned = judge(data, known, levels_of(levels, None)[0] or (), skip)
    cleaned.write(out, overwrite)
    report = cleaned.report()
    if as_json:
        print_json({"data": data, **report})
        return
    print_table(rejected_table(report["rejected"]))
    for domain, others in report["others"].items():
        typer.echo(
            f"note: {', '.join(others)} of {domain} are no levels and not judged; the levels are "
            f"{', '.join(report['levels'][domain])} (--levels names others)"
        )
    where = defaultdict[tuple[str, str], list[str]](list)
    for domain, reasons in report["not_checked"].items():
        for rule, why in reasons.items():
            where[rule, why].append(domain)
    for (rule, why), domains in where.items():
        typer.echo(f"note: {rule} is not checked in {', '.join(domains)}: {why}")
    typer.echo(
        f"{report['kept']} of {report['read']} records are kept: {out}; the others: "
        f"{rejected_path(out)}"
    )


@app.command(epilog="Example: alignvec data stats builtin -o builtin-stats")
def stats(
    data: DataArgument,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A folder for the numbers, a figure, a data sheet."),
    ] = None,
    spectra: Spectra = [],  # noqa: B006
    levels: LevelNames = None,
    about: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For the data sheet, in Markdown: what the data is, who made it and how.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lengths, diversity, readability and topics; does the length give the level away?"""
    from alignvec.data.quality.datasheet import about_text, datasheet, length_line
    from alignvec.data.quality.stats import statistics
    from alignvec.data.spectrum import read_spectrum
    from alignvec.files import write_json, write_text
    from alignvec.report.data import draw_lengths, statistics_table

    if out is not None:
        check_folder(out, "stats.json", "DATASHEET.md", "lengths.png", "lengths.svg")
    said = about_text(data, about)
    known = [read_spectrum(name) for name in spectra]
    found = statistics(data, known, levels_of(levels, None)[0] or ())
    if out is not None:
        write_json(out / "stats.json", found, overwrite=True)
        sheet = datasheet(Path(data).name, found, said)
        write_text(out / "DATASHEET.md", sheet, overwrite=True)
        draw_lengths(found["levels"], out / "lengths")
    if as_json:
        print_json(found)
        return
    print_table(statistics_table(found))
    parts = ", ".join(f"{split} {count}" for split, count in found["splits"].items())
    typer.echo(f"{found['personas']} personas, {found['topics']['distinct']} topics; {parts}")
    for check in found["length_check"]:
        typer.echo(length_line(check))
    if found["left_out"]:
        typer.echo(f"note: {found['left_out']} lines are no record with all its levels")
    if out is not None:
        typer.echo(f"written: {out}")
