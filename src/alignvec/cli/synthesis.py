"""From personas to records: `alignvec data personas`, `queries`, `responses`."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvec.cli.options import AsJson, EndpointOption, Out, Overwrite, SpectrumOption, seed_option
from alignvec.cli.output import print_json
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.synthesis.chat import Chat, Task
    from alignvec.data.synthesis.journal import Journal
    from alignvec.data.synthesis.queries import Query
    from alignvec.data.synthesis.writing import Budget, Outcome

app = typer.Typer()

Model = Annotated[
    str,
    typer.Option(help="Who writes: a model on this machine, or of the endpoint by its name there."),
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
    seed: Annotated[int, seed_option("Of all random choices.")] = 0,
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
    from alignvec.data.synthesis.journal import journal_of
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
    with journal_of(out, overwrite) as journal:
        if create:
            writer = _writer(model, endpoint, temperature, timeout, retries)
            created, outcome = people.create(
                create, about, found, writer, journal, prompt, budget, concurrency, seed
            )
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
    from alignvec.data.synthesis.journal import journal_of
    from alignvec.data.synthesis.personas import Persona
    from alignvec.data.synthesis.prompts import Prompt
    from alignvec.data.synthesis.queries import completed_queries, query_tasks
    from alignvec.data.synthesis.writing import write_texts

    about, prompt = read_spectrum(spectrum), Prompt("query", prompts)
    asking = read_entries(Persona, people)

    def asked() -> Iterator[tuple[Query, Task]]:
        return query_tasks(asking, about, prompt, each)

    if show_prompts:
        _show(next(asked())[1])
        return
    budget = _budget(token_budget, money_budget, prices)
    chat = _writer(model, endpoint, temperature, timeout, retries)
    with journal_of(out, overwrite) as journal:
        outcome = write_texts(
            lambda: (task for _, task in asked()), chat, journal, budget, concurrency
        )
        written = (query.model_dump() for query in completed_queries(asked(), chat, journal))
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
    from alignvec.data.synthesis.journal import journal_of
    from alignvec.data.synthesis.prompts import Prompt
    from alignvec.data.synthesis.queries import read_queries
    from alignvec.data.synthesis.responses import completed_records, response_tasks
    from alignvec.data.synthesis.writing import write_texts

    about, prompt = read_spectrum(spectrum), Prompt("response", prompts)
    questions = read_queries(asked, about.domain)

    def tasks() -> Iterator[tuple[Query, list[Task]]]:
        return response_tasks(questions, about, prompt)

    if show_prompts:
        for task in next(tasks())[1]:
            _show(task)
        return
    budget = _budget(token_budget, money_budget, prices)
    chat = _writer(model, endpoint, temperature, timeout, retries)
    with journal_of(out, overwrite) as journal:
        outcome = write_texts(
            lambda: (task for _, levels in tasks() for task in levels),
            chat, journal, budget, concurrency,
        )  # fmt: skip
        records = completed_records(tasks(), about, chat, journal)
        _finish(out, records, len(questions), outcome, journal, budget, overwrite, as_json)


def _writer(
    model: str, endpoint: str | None, temperature: float, timeout: float, retries: int
) -> Chat:
    from alignvec.data.synthesis.endpoint import Endpoint

    if endpoint:
        if model == "embedded":
            raise AlignvecError("give --model, by the name that the endpoint knows")
        url = None if endpoint == "openai" else endpoint
        return Endpoint(url, model, temperature, timeout, retries)
    from alignvec.base.live import open_weights
    from alignvec.base.source import base_name
    from alignvec.data.synthesis.local import Local
    from alignvec.knobs.model import KnobModel

    local = KnobModel.from_pretrained(model, {})
    # A namesake writes something else.
    name = f"{base_name(model)} {open_weights(local.model).state}"
    return Local(local, name, temperature)


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


def _finish(
    out: Path,
    entries: Iterable[dict[str, Any]],
    wanted: int,
    outcome: Outcome,
    journal: Journal,
    budget: Budget,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write what is there and say what it took.

    Raises:
        AlignvecError: something is missing, or would be lost.
    """
    from alignvec.data.synthesis.output import write_entries

    count = write_entries(out, entries, f"none of {wanted}: {outcome.missing}", overwrite)
    spent = {
        "prompt_tokens": journal.prompt_tokens,
        "completion_tokens": journal.completion_tokens,
        "money": budget.cost(journal.prompt_tokens, journal.completion_tokens),
        "estimated": journal.estimated,
    }
    if as_json:
        result = {"wanted": wanted, "there": count, **asdict(outcome), **spent}
        print_json(result)
    else:
        money = f", {spent['money']:.2f} in money" if any(budget.prices) else ""
        if journal.estimated:
            money += f"; estimated for {journal.estimated} answers, which came without a count"
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
