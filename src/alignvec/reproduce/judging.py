"""A second judge, where there is one: a model behind an endpoint reads what a knob alone and every
baseline wrote, in both orders of the levels, beside the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from alignvec.data.synthesis.chat import Chat
from alignvec.evaluate.chat_judge import ChatJudge, kappa, rubric
from alignvec.evaluate.judged import judged
from alignvec.reproduce import baselines, single_domain
from alignvec.reproduce.item import Item
from alignvec.reproduce.study import FAILED, Study

TITLE = "Second judge"


def items(study: Study) -> Iterator[Item]:
    """One for each result of the two parts."""
    if study.chat is None:
        return
    for part in (single_domain, baselines):
        for item in part.items(study):
            kind, domain = item.name.split("/")[:2]
            if kind != "base":
                run = partial(_read, study, study.chat, domain, item)
                yield Item(f"judging/{item.name}", run)


def _read(study: Study, chat: Chat, domain: str, item: Item) -> dict[str, Any]:
    """What both judges say of a result's texts; of a baseline level by level."""
    result = study.once(item)
    if "levels" in result:
        return {level: _told(study, chat, domain, one) for level, one in result["levels"].items()}
    return _told(study, chat, domain, result)


def _told(study: Study, chat: Chat, domain: str, result: Mapping[str, Any]) -> dict[str, Any]:
    if FAILED in result:
        return {FAILED: result[FAILED]}
    texts = result["answers"]
    asked = [one.prompt for one in study.records(domain, "test")[: len(texts)]]
    told = rubric(study.records(domain, "train"), study.levels)
    verdicts = ChatJudge(chat, told, study.out / "judge.jsonl").verdicts(asked, texts)
    found = judged(lambda *_: verdicts.levels, study.bounds(domain), asked, texts, study.levels)
    classified = study.judge(asked, texts)
    return {
        "judged": found.to_json(),
        **verdicts.to_json(),
        "with_classifier": asdict(kappa(verdicts.levels, classified, study.levels)),
    }
