"""Baselines, what a knob costs the model, how the vectors were trained, the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from alignvec.errors import printable
from alignvec.report.figure import COLOURS, MARKERS
from alignvec.report.study.document import Block, Chart, Panel, Row, Share, Table
from alignvec.report.study.lines import finish
from alignvec.report.study.results import WAYS, Results, at, rates, real, share, text
from alignvec.report.study.svg import legend

BASELINES_TITLE, ABILITY_TITLE = "Baselines at test time", "Abilities"
JUDGING_TITLE = "A second judge"
JUDGING_ABOUT = (
    "A model behind an endpoint reads the same answers, each twice, with the levels named in both "
    "orders; where its verdicts differ it has none. Cohen's kappa says how far the two orders "
    "agree, and how far it agrees with the classifier.",
)
TRAINING_TITLE, DATA_TITLE = "Training", "Data"
BASELINES_ABOUT = (
    "What else changes a model's behaviour while it runs, on the same data with the same measures, "
    "each at the strength that reaches a level best on validation queries: activation steering by "
    "a difference of means and by BiPO, DeRa (the logits of two models mixed), rewarded soups (the "
    "weights of two models mixed), plain LoRA with its scale turned; and a vector trained along "
    "the knob (ours), where training put the level. Making it: the trainings that it takes, of "
    "ours a domain's share; of steering the search for a layer as well.",
)
ABILITY_ABOUT = (
    "What a knob does to plain prose of no domain: KL from the base, and perplexity as a multiple "
    "of the base's. 0 and 1 are a model that has lost nothing.",
)
TRAINING_ABOUT = ("The vectors that everything here is measured with.",)
DATA_ABOUT = (
    "What the records are like, what cleaning would reject, and whether the classifier behind the "
    "judged rate tells the levels of held-out references as their authors meant them: if it does "
    "not, the judged rate means little.",
)
TRUSTED = 0.95  # accuracy of a judge
_BASELINES = {
    "steering": "steering (difference of means)",
    "bipo": "steering (BiPO)",
    "dera": "DeRa",
    "soup": "rewarded soup",
    "scaled": "LoRA with its scale turned",
    "along": "along the knob (ours)",
}


def baselines(study: Results) -> Iterator[Block]:
    """One table."""
    rows: list[Row] = [
        {
            ("", "domain"): domain, ("", "wanted"): level, ("", "by"): told,
            ("", "at"): real(at(found, "strength")),
            **rates(found, study.levels), **text(found),
            ("making it", "seconds"): real(at(made, "seconds")),
        }
        for domain in study.domains
        for level in study.levels
        for way, told in _BASELINES.items()
        if (made := study.found.get(f"baselines/{domain}/{way}"))
        and (found := at(made, "levels", level))
    ]  # fmt: skip
    if rows:
        yield Table("baselines", "Each way to each level", rows, "", 3, folds=False)


def judging(study: Results) -> Iterator[Block]:
    """A line for each text that was judged again."""
    rows: list[Row] = []
    for name, found in study.under("judging/").items():
        each = {"": found} if at(found, "judged") else found
        if not isinstance(each, Mapping):
            continue
        for level, one in each.items():
            if not at(one, "judged"):
                continue
            rows.append(
                {
                    ("", "of"): f"{name}/{level}".rstrip("/"),
                    ("", "texts"): at(one, "texts"),
                    ("", "told alike"): at(one, "told"),
                    **{
                        ("judged", of): share(
                            at(one, "judged", "rate", of), at(one, "judged", "interval", of)
                        )
                        if at(one, "told") != 0  # else the rates are those of no verdict
                        else None
                        for of in study.levels
                    },
                    ("kappa", "of both orders"): real(at(one, "orders", "value")),
                    ("kappa", "with the classifier"): real(at(one, "with_classifier", "value")),
                    ("answers", "unreadable"): at(one, "unreadable"),
                    ("answers", "refused"): at(one, "refused"),
                }
            )
    if rows:
        judge = study.told.get("judge")
        note = f"The judge is {printable(str(judge))}. " if judge else ""
        note += "Told alike are the texts that have one level in both orders; of each two answers "
        note += "are wanted."
        yield Table("judging", "What a second judge reads", rows, note)


def ability(study: Results) -> Iterator[Block]:
    """Two panels a domain, and the numbers."""
    panels: list[Panel] = []
    rows: list[Row] = []
    for domain in study.domains:
        found = {
            told: some
            for way, told in WAYS.items()
            if isinstance(some := study.found.get(f"ability/{domain}/{way}"), list)
        }
        for key, told in (("kl", "KL from the base, nats a token"), ("perplexity", "x the base's")):
            if found:
                draw = partial(_lost, found, key, told)
                panels.append(Panel(f"{domain}: {key if key != 'kl' else 'KL'}", draw))
        rows += [
            {
                ("", "domain"): domain, ("", "by"): way, ("", "at"): real(at(one, "strength")),
                ("neutral text", "KL"): real(at(one, "kl")),
                ("neutral text", "perplexity (of the base)"): real(at(one, "perplexity")),
            }
            for way, some in found.items()
            for one in some
        ]  # fmt: skip
    if panels:
        yield Chart("ability-lost", "What is lost on neutral text", panels)
    if rows:
        yield Table("ability", "What is lost, in numbers", rows, "", 3)


def _lost(found: Mapping[str, list[Any]], key: str, told: str, drawn: Figure) -> None:
    axes = drawn.subplots()
    most = 0.0
    for index, (way, some) in enumerate(found.items()):
        points = [
            (strength, value)
            for one in some
            if (strength := real(at(one, "strength"))) is not None
            and (value := real(at(one, key))) is not None
        ]
        if points:
            axes.plot(
                *zip(*sorted(points), strict=True), color=COLOURS[index], marker=MARKERS[index],
                markersize=4.5, linewidth=1.9, label=way,
            )  # fmt: skip
            most = max(most, *(value for _, value in points))
    if key == "perplexity" and most > 10:
        axes.set_yscale("log")
    finish(axes, "strength of the knob (lambda)", told)
    legend(axes, 1)


def training(study: Results) -> Iterator[Block]:
    """A line a training."""
    rows: list[Row] = [
        {
            ("", "training"): name,
            ("", "pairs"): at(found, "pairs"),
            ("", "seconds"): real(at(found, "seconds")),
            ("at its end", "loss"): real(at(found, "last", "loss")),
            ("at its end", "margin"): real(at(found, "last", "margin")),
            ("settings", "method"): at(found, "settings", "method"),
            ("settings", "loss"): at(found, "settings", "loss"),
            ("settings", "rank"): at(found, "settings", "rank"),
            ("settings", "learning rate"): real(at(found, "settings", "learning_rate")),
            ("settings", "epochs"): real(at(found, "settings", "epochs")),
        }
        for name, found in study.under("training/").items()
    ]
    if rows:
        yield Table("training", "Trainings", rows)


def data(study: Results) -> Iterator[Block]:
    """The sheet, the rules, and the classifier."""
    sheet = study.found.get("data/statistics")
    kinds = {"query": at(sheet, "queries"), **(at(sheet, "levels") or {})}
    rows: list[Row] = [
        {
            ("", "text"): kind,
            ("words", "mean"): real(at(one, "words", "mean")),
            ("words", "sd"): real(at(one, "words", "sd")),
            ("words", "5%"): real(at(one, "words", "p5")),
            ("words", "95%"): real(at(one, "words", "p95")),
            ("", "distinct-2"): real(at(one, "distinct_2")),
            ("", "grade"): real(at(one, "readability_grade", "mean")),
        }
        for kind, one in kinds.items()
        if one
    ]
    if rows:
        domains = at(sheet, "domains") or {}
        each = ", ".join(f"{name} {at(one, 'records')}" for name, one in domains.items())
        yield Table("data", "The records", rows, f"{at(sheet, 'records')} records: {each}.")
    rejected = at(study.found.get("data/cleaning"), "rejected")
    if isinstance(rejected, Mapping):
        rows = [{("", "rule"): rule, ("", "rejected"): count} for rule, count in rejected.items()]
        yield Table("data-cleaning", "What cleaning rejects", rows)
    yield from _classifier(study)


def _classifier(study: Results) -> Iterator[Block]:
    """What the classifier reads, of what authors meant."""
    told = at(study.found.get("data/levels"), "told")
    if not isinstance(told, Mapping):
        return
    read = list(dict.fromkeys([*study.levels, *(name for row in told.values() for name in row)]))
    rows: list[Row] = [
        {("", "meant as"): level} | {("read as", name): row.get(name, 0) for name in read}
        for level, row in told.items()
    ]
    note = "Held-out references."
    if value := accuracy(study):
        note += f" Accuracy {value.value:.3f} ({value.low:.3f} to {value.high:.3f})."
        if value.value < TRUSTED:
            note += f" Below {TRUSTED:g}: the judged rates of this study are not to be trusted."
    yield Table("data-levels", "The classifier of levels against the authors", rows, note)


def accuracy(study: Results) -> Share | None:
    """Of the classifier on held-out references, if the study says it."""
    found = at(study.found.get("data/levels"), "accuracy")
    return share(at(found, "share"), at(found, "interval"))
