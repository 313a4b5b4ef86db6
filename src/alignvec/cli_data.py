"""`alignvec data ...`: from personas to clean, annotated preference records."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec.cli_options import AsJson, Out, Overwrite
from alignvec.errors import AlignvecError
from alignvec.progress import progress

if TYPE_CHECKING:
    from alignvec.data.chat import Chat, Task
    from alignvec.data.journal import Journal
    from alignvec.data.synthesis import Budget, Outcome

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
    from alignvec.data import personas as people
    from alignvec.data.prompts import Prompt
    from alignvec.data.spectrum import read_spectrum
    from alignvec.data.synthesis import Outcome

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
            budget, as_json,
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
    from alignvec.data.journal import key_of
    from alignvec.data.personas import read_personas
    from alignvec.data.prompts import Prompt
    from alignvec.data.queries import as_query, query_tasks
    from alignvec.data.spectrum import read_spectrum

    about, prompt = read_spectrum(spectrum), Prompt("query", prompts)
    asking = list(read_personas(people))

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
        _finish(out, written, len(asking) * each, outcome, journal, budget, as_json)


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
    from alignvec.data.journal import key_of
    from alignvec.data.prompts import Prompt
    from alignvec.data.queries import read_queries
    from alignvec.data.responses import response_tasks
    from alignvec.data.spectrum import read_spectrum

    about, prompt = read_spectrum(spectrum), Prompt("response", prompts)
    questions = list(read_queries(asked))
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
                    texts = (" ".join(journal[key].text.split()) for key in keys)
                    yield {**query.model_dump(), **dict(zip(about.level_names, texts, strict=True))}

        outcome = _write(tasks, chat, journal, budget, concurrency, "responses", "response")
        _finish(out, records(), len(questions), outcome, journal, budget, as_json)


def _writer(
    model: str, endpoint: str | None, temperature: float, timeout: float, retries: int
) -> Callable[[], Chat]:
    """Makes writers: one for each event loop."""
    from alignvec.data.chat import Endpoint, Local

    if endpoint:
        url = None if endpoint == "openai" else endpoint
        return lambda: Endpoint(url, model, temperature, timeout, retries)
    from alignvec.knobs import KnobModel
    from alignvec.models import base_name

    local = KnobModel.from_pretrained(model, {})
    return lambda: Local(local, base_name(model), temperature)


def _budget(tokens: int | None, money: float | None, prices: str) -> Budget:
    from alignvec.data.synthesis import Budget

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
    """The journal of an output, beside it. An output that has one may be written again."""
    from alignvec.data.journal import Journal
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
    from alignvec.data.synthesis import write_texts

    with progress(what, unit) as advance:
        return write_texts(tasks, chat, journal, budget, concurrency, advance)


def _finish(
    out: Path,
    lines: Iterable[dict[str, Any]],
    wanted: int,
    outcome: Outcome,
    journal: Journal,
    budget: Budget,
    as_json: bool,
) -> None:
    """Write what is there and say what it took.

    Raises:
        AlignvecError: something is missing.
    """
    import json
    from dataclasses import asdict

    from alignvec.files import write_file

    count = 0
    with write_file(out) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    spent = {
        "prompt_tokens": journal.prompt_tokens,
        "completion_tokens": journal.completion_tokens,
        "money": budget.cost(journal.prompt_tokens, journal.completion_tokens),
    }
    if as_json:
        result = {"wanted": wanted, "there": count, **asdict(outcome), **spent}
        typer.echo(json.dumps(result, indent=2))
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


def _show(task: Task) -> None:
    for role, content in task.messages:
        typer.echo(f"[{role}]\n{content}\n")
