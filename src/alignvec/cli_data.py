"""`alignvec data ...`: from personas to clean, annotated preference records."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec.cli_common import (
    AsJson,
    Domain,
    Out,
    Overwrite,
    check_apart,
    check_folder,
    print_json,
    print_table,
)
from alignvec.errors import AlignvecError, printable
from alignvec.progress import progress

if TYPE_CHECKING:
    from alignvec.data.annotation.store import Annotations
    from alignvec.data.synthesis.chat import Chat, Task
    from alignvec.data.synthesis.journal import Journal
    from alignvec.data.synthesis.writing import Budget, Outcome

app = typer.Typer(
    name="data",
    help="Make preference data: personas, queries, responses; clean and check it.",
    epilog="The way: personas, queries, responses, clean, annotate, agreement, stats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SpectrumOption = Annotated[
    str,
    typer.Option(
        "--spectrum",
        metavar="NAME|FILE",
        help="The levels and topics: medical, financial, legal, tone, detail, or a YAML file.",
    ),
]
Model = Annotated[
    str,
    typer.Option(help="Who writes: a model on this machine, or of the endpoint by its name there."),
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
MaybeSpectrum = Annotated[
    str | None,
    typer.Option("--spectrum", metavar="NAME|FILE", help="Whose levels, and what they mean."),
]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="'builtin' or a .jsonl file.")]
Spectra = Annotated[
    list[str],
    typer.Option(
        "--spectrum",
        metavar="NAME|FILE",
        help="Of a domain of the data; repeat. Those that ship with alignvec are known.",
    ),
]
LevelNames = Annotated[
    str | None, typer.Option("--levels", metavar="LOW,...,HIGH", help="Default: the data's own.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for one try at a request.")]
Retries = Annotated[
    int, typer.Option(min=0, help="At rate limits, server errors and timeouts, pausing longer.")
]
TokenBudget = Annotated[
    int | None,
    typer.Option(min=1, help="Stop before all runs together have taken so many tokens."),
]
MoneyBudget = Annotated[
    float | None, typer.Option(min=0, help="Stop before they have cost so much; see --prices.")
]
Prices = Annotated[
    str, typer.Option(metavar="READ,WRITTEN", help="What a million tokens cost, as in 0.15,0.60.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="A folder with prompt files in the place of alignvec's own.")
]
ShowPrompts = Annotated[
    bool, typer.Option("--show-prompts", help="Print the first request and do nothing.")
]


@app.command(
    epilog="Example: alignvec data personas --spectrum medical --create 50 -o personas.jsonl\n\n"
    "Example: alignvec data personas --spectrum legal --source proj-persona/PersonaHub -n 2000 "
    "-o personas.jsonl"
)
def personas(
    out: Out,
    spectrum: SpectrumOption,
    source: Annotated[
        str | None,
        typer.Option(help="PersonaHub on the hub, or a .jsonl file with a field 'persona'."),
    ] = None,
    limit: Annotated[int, typer.Option("-n", min=1, help="At most so many of the source.")] = 1000,
    any_domain: Annotated[
        bool, typer.Option("--any", help="Of the source, also those of no domain.")
    ] = False,
    create: Annotated[
        int, typer.Option(min=0, help="So many new ones, unlike those there are (CreatePersona).")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    model: Model = "embedded",
    endpoint: EndpointOption = None,
    temperature: Temperature = 0.9,
    concurrency: Concurrency = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 8,
    token_budget: TokenBudget = None,
    money_budget: MoneyBudget = None,
    prices: Prices = "0,0",
    prompts: Prompts = None,
    show_prompts: ShowPrompts = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Who asks: people from PersonaHub, and new ones grown from them.

    New ones are spread over ages, places, jobs and ways to speak, the rarest first; none reads
    like another.
    """
    from alignvec.data.spectrum import read_spectrum
    from alignvec.data.synthesis import personas as people
    from alignvec.data.synthesis.prompts import Prompt
    from alignvec.data.synthesis.writing import Outcome

    about = read_spectrum(spectrum)
    prompt = Prompt("persona", prompts)
    if show_prompts:
        used, chance = defaultdict[str, Counter[str | None]](Counter), random.Random(seed)
        _show(people.request(about, prompt, [], used, chance)[1])
        return
    if source is None and not create:
        raise AlignvecError("no personas asked for: give a --source, --create NUMBER, or both")
    budget = _budget(token_budget, money_budget, prices)
    found = people.from_hub(source, about, limit, any_domain, seed) if source else []
    outcome, known = Outcome(), len(found)
    with _journal(out, overwrite) as journal:
        if create:
            writer = _writer(model, endpoint, temperature, timeout, retries)
            with progress("personas", "persona") as advance:
                created, outcome = people.create(
                    create, about, found, writer, journal, prompt, budget, concurrency, seed,
                    advance,
                )  # fmt: skip
            found = [*found, *created]
        _finish(
            out, (persona.model_dump() for persona in found), known + create, outcome, journal,
            budget, overwrite, as_json,
        )  # fmt: skip


@app.command(
    epilog="Example: alignvec data queries personas.jsonl --spectrum medical --each 3 "
    "--endpoint http://localhost:8000/v1 --model my-model -o queries.jsonl"
)
def queries(
    people: Annotated[Path, typer.Argument(metavar="PERSONAS", help="From `data personas`.")],
    out: Out,
    spectrum: SpectrumOption,
    each: Annotated[int, typer.Option(min=1, help="Queries of a persona.")] = 3,
    model: Model = "embedded",
    endpoint: EndpointOption = None,
    temperature: Temperature = 0.8,
    concurrency: Concurrency = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 8,
    token_budget: TokenBudget = None,
    money_budget: MoneyBudget = None,
    prices: Prices = "0,0",
    prompts: Prompts = None,
    show_prompts: ShowPrompts = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """What the personas ask, each in its own voice, on topics of the spectrum."""
    from alignvec.data.records import read_entries
    from alignvec.data.spectrum import read_spectrum
    from alignvec.data.synthesis.journal import key_of
    from alignvec.data.synthesis.personas import Persona
    from alignvec.data.synthesis.prompts import Prompt
    from alignvec.data.synthesis.queries import as_query, query_tasks

    about, prompt = read_spectrum(spectrum), Prompt("query", prompts)
    asking = read_entries(Persona, people)

    def wanted() -> Iterator[tuple[dict[str, Any], Task]]:
        for query, task in query_tasks(asking, about, prompt, each):
            yield query.model_dump(), task

    if show_prompts:
        _show(next(wanted())[1])
        return
    budget = _budget(token_budget, money_budget, prices)
    writer = _writer(model, endpoint, temperature, timeout, retries)
    with _journal(out, overwrite) as journal:
        chat = writer()
        outcome = _write(lambda: (task for _, task in wanted()), chat, journal, budget, concurrency,
                         "queries", "query")  # fmt: skip
        written = (
            {**query, "query": as_query(journal[key].text)}
            for query, task in wanted()
            if (key := key_of(task, chat)) in journal
        )
        _finish(out, written, len(asking) * each, outcome, journal, budget, overwrite, as_json)


@app.command(
    epilog="Example: alignvec data responses queries.jsonl --spectrum medical "
    "--endpoint http://localhost:8000/v1 --model my-model -o records.jsonl"
)
def responses(
    asked: Annotated[Path, typer.Argument(metavar="QUERIES", help="From `data queries`.")],
    out: Out,
    spectrum: SpectrumOption,
    model: Model = "embedded",
    endpoint: EndpointOption = None,
    temperature: Temperature = 0.7,
    concurrency: Concurrency = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 8,
    token_budget: TokenBudget = None,
    money_budget: MoneyBudget = None,
    prices: Prices = "0,0",
    prompts: Prompts = None,
    show_prompts: ShowPrompts = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Every query answered at each level: records to align with.

    A record is written when all its levels are there.
    """
    from alignvec.data.spectrum import read_spectrum
    from alignvec.data.synthesis.journal import key_of
    from alignvec.data.synthesis.prompts import Prompt
    from alignvec.data.synthesis.queries import read_queries
    from alignvec.data.synthesis.responses import as_response, response_tasks

    about, prompt = read_spectrum(spectrum), Prompt("response", prompts)
    questions = read_queries(asked, about.domain)
    if show_prompts:
        for task in next(response_tasks(questions, about, prompt))[1]:
            _show(task)
        return
    budget = _budget(token_budget, money_budget, prices)
    writer = _writer(model, endpoint, temperature, timeout, retries)
    with _journal(out, overwrite) as journal:
        chat = writer()

        def tasks() -> Iterator[Task]:
            for _, levels in response_tasks(questions, about, prompt):
                yield from levels

        def records() -> Iterator[dict[str, Any]]:
            for query, levels in response_tasks(questions, about, prompt):
                keys = [key_of(task, chat) for task in levels]
                if all(key in journal for key in keys):
                    texts = {
                        level: as_response(journal[key], about.band(level)[1])
                        for level, key in zip(about.level_names, keys, strict=True)
                    }
                    yield {**query.model_dump(), **texts}

        outcome = _write(tasks, chat, journal, budget, concurrency, "responses", "response")
        _finish(out, records(), len(questions), outcome, journal, budget, overwrite, as_json)


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
    seed: Annotated[int, typer.Option(help="Of the choice of records.")] = 0,
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
    from alignvec.data.records import level_names, read_records

    def file_of(text: str) -> tuple[str, Path]:
        form, _, path = text.partition("=")
        if form not in FORMATS or not path:
            raise AlignvecError(f"'{text}' is not FORMAT=FILE; formats: {', '.join(FORMATS)}")
        return form, Path(path)

    written, read = [file_of(text) for text in exports], [file_of(text) for text in imports]
    order, about = _levels(levels, spectrum)
    items = []
    if data is not None:
        order = order or level_names(data)
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
    from threading import Event

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
            help="From `data annotate`; or a table (.csv, .jsonl) with the columns item, "
            "annotator, level and, if known, intended.",
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
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """How far the annotators agree, with each other and with the intended level.

    Raw agreement, Cohen's kappa of each pair (plain, linear, quadratic), Fleiss' kappa,
    Krippendorff's alpha (nominal, ordinal), with 95% intervals from a bootstrap over items.
    """
    from alignvec.data.annotation import agreement as measures
    from alignvec.files import write_json, write_text
    from alignvec.report.figures import draw_confusion

    ratings = measures.read_ratings(answers, _levels(levels, spectrum)[0])
    found = measures.agreement(ratings, seed)
    differing = measures.disagreements(ratings)
    if out is not None:
        check_folder(out)
        write_json(out / "agreement.json", found)
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in differing)
        write_text(out / "disagreements.jsonl", "".join(lines))
        if found["confusion"]:
            draw_confusion(found["confusion"], out / "confusion")
    if as_json:
        print_json(found)
        return
    _print_agreement(found)
    where = f"; written: {out}" if out else ""
    typer.echo(f"answers differ on {len(differing)} of {len(ratings.chosen)} items{where}")


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

    for path in (out, rejected_path(out)):
        check_apart(path, data)
        check_free(path, overwrite)
    known = [read_spectrum(name) for name in spectra]
    with progress("cleaning", "step") as advance:
        cleaned = judge(data, known, _levels(levels, None)[0] or (), skip, advance)
    cleaned.write(out, overwrite)
    report = cleaned.report()
    if as_json:
        print_json({"data": data, **report})
        return
    _print_rejected(report["rejected"])
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


def _print_rejected(counts: Mapping[str, int]) -> None:
    from rich.table import Table

    from alignvec.data.quality.rules import RULES

    table = Table("rule", "what it asks for")
    table.add_column("rejected", justify="right")
    for rule, count in counts.items():
        table.add_row(rule, RULES[rule].about, str(count))
    print_table(table)


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
    from alignvec.report.figures import draw_lengths

    if out is not None:
        check_folder(out)
    said = about_text(data, about)
    known = [read_spectrum(name) for name in spectra]
    found = statistics(data, known, _levels(levels, None)[0] or ())
    if out is not None:
        write_json(out / "stats.json", found)
        write_text(out / "DATASHEET.md", datasheet(Path(data).name, found, said))
        draw_lengths(found["levels"], out / "lengths")
    if as_json:
        print_json(found)
        return
    _print_statistics(found)
    for check in found["length_check"]:
        typer.echo(length_line(check))
    if found["left_out"]:
        typer.echo(f"note: {found['left_out']} lines are no record with all its levels")
    if out is not None:
        typer.echo(f"written: {out}")


def _print_statistics(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    domains = ", ".join(f"{name} {one['records']}" for name, one in found["domains"].items())
    domains = printable(domains)
    table = Table("", title=Text(f"{found['records']} records: {domains}"))
    for column in ("words", "sd", "5% to 95%", "distinct-2", "commonest opening", "grade"):
        table.add_column(column, justify="right")
    for kind, one in {"query": found["queries"], **found["levels"]}.items():
        words = one["words"]
        opening = f"{one['commonest_opening']} ({one['commonest_opening_share']:.1%})"
        table.add_row(
            Text(kind), f"{words['mean']:.1f}", f"{words['sd']:.1f}",
            f"{words['p5']:.0f} to {words['p95']:.0f}", f"{one['distinct_2']:.2f}", Text(opening),
            f"{one['readability_grade']['mean']:.1f}",
        )  # fmt: skip
    print_table(table)
    topics, splits = found["topics"], found["splits"]
    parts = ", ".join(f"{split} {count}" for split, count in splits.items())
    typer.echo(f"{found['personas']} personas, {topics['distinct']} topics; {parts}")


def _levels(levels: str | None, spectrum: str | None) -> tuple[list[str] | None, dict[str, str]]:
    """The levels asked for, from low to high, and what those of the spectrum mean."""
    from alignvec.data.pairs import parse_order
    from alignvec.data.spectrum import read_spectrum

    told = read_spectrum(spectrum).levels if spectrum else []
    names = parse_order(levels) if levels else [level.name for level in told]
    return names or None, {level.name: level.instruction for level in told}


def _print_agreement(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    def value(measure: Mapping[str, Any]) -> str:
        return "-" if measure["value"] is None else f"{measure['value']:.2f}"

    def shown(measure: Mapping[str, Any]) -> str:
        low, high = measure["interval"] or (None, None)
        return value(measure) + (f" ({low:.2f} to {high:.2f})" if measure["interval"] else "")

    pairs = [(", ".join(pair["annotators"]), pair) for pair in found["pairs"]]
    if intended := found["with_intended"]:
        pairs += [(f"{name}, intended", one) for name, one in intended["annotators"].items()]
        pairs.append(("majority, intended", intended["majority"]))
    table = Table("", "items", "raw", title="two by two (95% intervals)")
    table.add_column("Cohen's kappa", no_wrap=True)
    for weights in ("linear", "quadratic"):
        table.add_column(weights)
    for name, pair in pairs:
        cells = value(pair["raw"]), shown(pair["kappa"]), value(pair["linear"])
        table.add_row(Text(name), str(pair["raw"]["items"]), *cells, value(pair["quadratic"]))
    print_table(table)
    together = found["together"]
    typer.echo(
        f"all together: raw {shown(together['raw'])}, Fleiss' kappa {shown(together['fleiss'])}\n"
        f"Krippendorff's alpha: nominal {shown(together['alpha'])}, ordinal "
        f"{shown(together['alpha_ordinal'])}"
    )
    for remark in found["remarks"]:
        typer.echo(f"note: {remark}")


def _writer(
    model: str, endpoint: str | None, temperature: float, timeout: float, retries: int
) -> Callable[[], Chat]:
    """Makes writers: one for each event loop."""
    from alignvec.data.synthesis.chat import Endpoint, Local

    if endpoint:
        if model == "embedded":
            raise AlignvecError("give --model, by the name that the endpoint knows")
        if endpoint != "openai" and not endpoint.startswith(("http://", "https://")):
            raise AlignvecError(f"'{endpoint}' is no endpoint; as in http://localhost:8000/v1")
        url = None if endpoint == "openai" else endpoint
        return lambda: Endpoint(url, model, temperature, timeout, retries)
    from alignvec.knobs import KnobModel
    from alignvec.models import base_name

    local = KnobModel.from_pretrained(model, {})
    return lambda: Local(local, base_name(model), temperature)


def _budget(tokens: int | None, money: float | None, prices: str) -> Budget:
    from alignvec.data.synthesis.writing import Budget

    try:
        read, written = (float(price) for price in prices.split(","))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < float("inf") and 0 <= written < float("inf")):
        raise AlignvecError(f"'{prices}' are no prices; write READ,WRITTEN, as in 0.15,0.60")
    if money is not None and not (read or written):
        raise AlignvecError("a budget in money needs --prices")
    return Budget(tokens, money, (read, written))


@contextmanager
def _journal(out: Path, overwrite: bool) -> Iterator[Journal]:
    """The journal of an output, beside it. An output that has one may be completed."""
    from alignvec.data.synthesis.journal import Journal
    from alignvec.files import check_free

    path = out.with_name(f"{out.name}.journal")
    check_free(out, overwrite or path.exists())
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def _write(
    tasks: Callable[[], Iterable[Task]],
    chat: Chat,
    journal: Journal,
    budget: Budget,
    concurrency: int,
    what: str,
    unit: str,
) -> Outcome:
    from alignvec.data.synthesis.writing import write_texts

    with progress(what, unit) as advance:
        return write_texts(tasks, chat, journal, budget, concurrency, advance)


def _finish(
    out: Path,
    lines: Iterable[dict[str, Any]],
    wanted: int,
    outcome: Outcome,
    journal: Journal,
    budget: Budget,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write what is there and say what it took.

    An earlier output may be completed without asking, not replaced.

    Raises:
        AlignvecError: something is missing, or would be lost.
    """
    from dataclasses import asdict

    from alignvec.files import write_file

    count = 0
    with write_file(out) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
        file.close()
        if count == 0:
            raise AlignvecError(f"none of {wanted}: {outcome.missing}")
        if not overwrite and out.exists() and not _lines(out) <= _lines(partial):
            raise AlignvecError(
                f"{out} holds other lines than these; choose another name or pass --overwrite (the "
                "new texts are in its journal)"
            )
    spent = {
        "prompt_tokens": journal.prompt_tokens,
        "completion_tokens": journal.completion_tokens,
        "money": budget.cost(journal.prompt_tokens, journal.completion_tokens),
    }
    if as_json:
        result = {"wanted": wanted, "there": count, **asdict(outcome), **spent}
        print_json(result)
    else:
        money = f", {spent['money']:.2f} in money" if any(budget.prices) else ""
        typer.echo(
            f"{count} of {wanted}: {out} ({outcome.written} texts new, {outcome.known} known; in "
            f"all {journal.prompt_tokens:,} tokens read, {journal.completion_tokens:,} "
            f"written{money})"
        )
    if count < wanted:
        why = outcome.missing or "the writer has no new ideas; raise the temperature"
        raise AlignvecError(f"{wanted - count} of {wanted} are missing: {why}")


def _lines(path: Path) -> set[bytes]:
    return set(path.read_bytes().splitlines())


def _show(task: Task) -> None:
    for role, content in task.messages:
        typer.echo(f"[{role}]\n{content}\n")
