"""Preference pairs as TRL trains on them: tokens of prompts and of what is preferred after them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from alignvec.base.prompts import Prompt
from alignvec.data.pairs import PreferencePair
from alignvec.errors import AlignvecError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenPair:
    """A pair as tokens; the answers with the ends of their turns."""

    pair: PreferencePair
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def token_pairs(
    pairs: Iterable[PreferencePair], tokenizer: PreTrainedTokenizerBase
) -> list[TokenPair]:
    """Raises: AlignvecError: the chat template refuses a prompt."""

    @cache
    def prompt(key: str) -> Prompt:
        return Prompt(tokenizer, json.loads(key))

    @cache
    def taught(key: str, answer: str) -> list[int]:
        return prompt(key).taught(answer)

    return [
        TokenPair(pair, prompt(key).tokens, taught(key, pair.chosen), taught(key, pair.rejected))
        for pair in pairs
        for key in [_key(pair)]
    ]


def fitting(pairs: Sequence[TokenPair], longest: int) -> tuple[list[TokenPair], dict[str, int]]:
    """The pairs whose prompts leave room for an answer within `longest` tokens, and how many
    records are `left_out` because theirs do not, or have an answer that is `cut` there.

    Raises:
        AlignvecError: nothing is left.
    """
    kept = [pair for pair in pairs if len(pair.prompt) < longest]
    if not kept:
        raise AlignvecError(
            f"every prompt alone has {longest} tokens or more, the longest length; --max-length"
        )

    def records(some: Iterable[TokenPair]) -> int:
        return len({one.pair.record for one in some})

    told = {
        "left_out": records(pair for pair in pairs if len(pair.prompt) >= longest),
        "cut": records(pair for pair in kept if pair.length > longest),
    }
    if any(told.values()):
        logger.warning(
            "longest length: %d tokens (--max-length); records cut there: %d; left out, as the "
            "prompt alone is longer: %d", longest, told["cut"], told["left_out"],
        )  # fmt: skip
    return kept, told


def pairs_dataset(
    pairs: Sequence[TokenPair], seed: int, work: Path, multiple: int = 1
) -> datasets.Dataset:
    """Pairs as TRL has them after its own preparation; on disk, so that its caches survive a kill.

    The queries of plain pairs are shuffled; pairs with strengths have their order. The last one is
    repeated, and does not count, up to a `multiple`: several processes have as many each.
    """
    turned = any(one.pair.strengths for one in pairs)
    rows = [
        {
            "prompt_ids": one.prompt,
            "chosen_ids": one.chosen,
            "rejected_ids": one.rejected,
            **(
                {
                    "place": place,
                    "strengths": one.pair.strengths,
                    "hold": one.pair.hold,
                    "broken": one.pair.broken,
                }
                if turned
                else {}
            ),
        }
        for place, one in enumerate(pairs if turned else _shuffled(pairs, seed))
    ]
    if multiple > 1:
        last = [{**rows[-1], "counts": False}] * (-len(rows) % multiple)
        rows = [{**row, "counts": True} for row in rows] + last
    if len(rows) < 5000:  # bars that flash by hide the one that matters
        datasets.disable_progress_bars()
    folder = work / "pairs"
    if not (folder / "state.json").exists():
        datasets.Dataset.from_list(rows).save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def _shuffled(pairs: Sequence[TokenPair], seed: int) -> list[TokenPair]:
    by_prompt: dict[str, list[TokenPair]] = {}
    for one in pairs:
        by_prompt.setdefault(_key(one.pair), []).append(one)
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    return [one for prompt in prompts for one in by_prompt[prompt]]


def _key(pair: PreferencePair) -> str:
    return json.dumps(pair.prompt)
