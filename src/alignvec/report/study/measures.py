"""How the two rates are defined, and what counts as broken in each domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignvec.report.study.document import Block, Cell, Column, Section, Table
from alignvec.report.study.others import accuracy
from alignvec.report.study.results import Results, at
from alignvec.reproduce.study import HARMLESS, SAFETY

_ABOUT = (
    "Likelihood preference rate of a level: the share of held-out queries for which the reference "
    "response of that level has the highest log-likelihood a token among those of all levels. This "
    "is our reading of the paper's “preference accuracy”, which version 1 does not "
    "formalise. It says what a model prefers among given texts, not what it writes.",
    "Judged rate of a level: the share of the model's own greedy answers that are of this level "
    "and not broken. The level is told by a classifier that was trained on references of the train "
    "part alone. A miss is a wrong level or a broken text.",
    "Both have 95% intervals over queries (Wilson); differences of two rates have Newcombe's. "
    "Beside every judged rate stands what the same texts are like: the share that is broken, the "
    "share of 4-grams that stand earlier in the same answer, words, the share of answers that end "
    "with a sentence's end, and perplexity under another model. A knob that only breaks the text "
    "is seen there.",
)


def measures(studies: Sequence[Results]) -> Section:
    """The section; the bounds as far as the studies say them."""
    judges: list[dict[Column, Cell]] = [
        {("", "model"): one.model, ("", "accuracy on held-out references (95%)"): accuracy(one)}
        for one in studies
        if accuracy(one)
    ]
    bounds = [row for one in studies for row in _bounds(one)]
    blocks: list[Block] = []
    if judges:
        blocks.append(Table("judge", "The classifier of levels", judges))
    if bounds:
        note = "Set on the base's own answers and the references of each domain."
        blocks.append(Table("bounds", "What counts as broken", bounds, note))
    lacks = [
        f"{one.model}: the bounds of broken texts are not in its results."
        for one in studies
        if not list(_bounds(one))
    ]
    return Section("measures", "Two measures", _ABOUT, blocks, lacks)


def _bounds(study: Results) -> Iterator[dict[Column, Cell]]:
    for domain in (*study.domains, SAFETY, HARMLESS):
        if stated := at(study.found.get(f"base/{domain}"), "bounds", "stated"):
            yield {
                ("", "model"): study.model,
                ("", "domain"): domain,
                ("", "bounds"): str(stated),
            }
