"""Part 6, the cost of inference (the paper: half of prompting), at the level that is asked for.

The same queries, the top level of each domain: by a system prompt, by examples, by a knob beside
the weights and by one folded into them. Tokens read and written, seconds to the first token and in
all; on a GPU the energy too. The judged rate of what was written stands beside: a cheap answer at
the wrong level is no gain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from alignvec.base.messages import Messages
from alignvec.base.prompts import Prompt
from alignvec.evaluate.judged import judged
from alignvec.knobs.model import KnobModel
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.prompting import Prompted, system_prompt, with_examples, with_system
from alignvec.reproduce.study import Study
from alignvec.reproduce.training import ALONG, trainings, vectors

TITLE = "Cost of inference"
WAYS = ("base", "system prompt", "few-shot", "gated", "folded")
_ROUNDS = 3  # the median counts


def items(study: Study) -> Iterator[Item]:
    """All ways of a domain in one item: they are compared in one run."""
    for domain in study.domains:
        answers = min(len(study.records(domain, "test")), study.scale.answers)
        work = Work(written=answers * len(WAYS) * _ROUNDS)
        shared = trainings(study, ALONG, [domain])
        yield Item(f"inference/{domain}", partial(_compared, study, domain), work, shared)


def _compared(study: Study, domain: str) -> dict[str, Any]:
    """Way -> what an answer costs, one query at a time, the ways taking turns."""
    top = study.levels[-1]
    asked = study.records(domain, "test")[: study.scale.answers]
    bounds = study.bounds(domain)
    knobs = vectors(study, ALONG, [domain])
    told = {
        "system prompt": with_system(system_prompt({domain: top})),
        "few-shot": with_examples(study.records(domain, "train"), {domain: top}),
    }
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(_ROUNDS):
        for way in WAYS:
            model = study.models.live(knobs, mode="gate" if way == "gated" else "fold")
            turned = {domain: study.places[top]} if way in ("gated", "folded") else {}
            with model.at(turned):
                prompts = [one.prompt for one in asked]
                if way in told:
                    prompts = [*map(Prompted(model, told[way]).asked, prompts)]
                run = _timed(model, prompts, study.scale.tokens)
                runs[way].append(run | {"texts": [*map(study.shown, run["texts"])]})
    return {
        way: {
            **{
                key: statistics.median(run[key] for run in found)
                for key in ("read", "written", "seconds", "first_token")
            },
            "joules": _median([run["joules"] for run in found]),
            "judged": judged(
                study.judge, bounds, [one.prompt for one in asked], found[0]["texts"], study.levels
            ).to_json(),
        }
        for way, found in runs.items()
    }


def _timed(
    model: KnobModel,
    asked: Sequence[Messages],
    tokens: int,
) -> dict[str, Any]:
    """Means over the queries: tokens read and written, seconds, seconds to the first token."""
    model.generate(asked[0], max_new_tokens=2)  # the first after loading pays for it
    read = [len(Prompt(model.tokenizer, one).tokens) for one in asked]
    first = [_seconds(partial(model.generate, one, max_new_tokens=1)) for one in asked]
    texts: list[str] = []
    seconds: list[float] = []
    watts: list[float] = []
    for one in asked:
        start = time.perf_counter()
        texts += model.generate(one, max_new_tokens=tokens)
        seconds.append(time.perf_counter() - start)
        watts += filter(None, [_watts(model.model.device)])
    written = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return {
        "read": statistics.mean(read),
        "written": statistics.mean(written),
        "seconds": statistics.mean(seconds),
        "first_token": statistics.mean(first),
        "joules": statistics.mean(watts) * statistics.mean(seconds) if watts else None,
        "texts": texts,
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _watts(device: torch.device) -> float | None:
    """What a GPU draws now; None of anything else, or where nobody says it."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # no library that asks, an old driver, a part of a GPU
        return None
