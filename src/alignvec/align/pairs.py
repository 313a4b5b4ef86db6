"""Preference pairs as TRL reads them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from alignvec.base.prompts import plain_prompt
from alignvec.data.pairs import PreferencePair


def pairs_dataset(
    pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, seed: int, work: Path
) -> datasets.Dataset:
    """Pairs as TRL reads them; on disk, so that TRL's caches survive a kill.

    The queries of plain pairs are shuffled; pairs with strengths have their order.
    """
    turned = any(pair.strengths for pair in pairs)
    ordered = pairs if turned else _shuffled(pairs, seed)

    def said(role: str, text: str) -> Any:
        if tokenizer.chat_template is None:
            return plain_prompt(text) if role == "user" else text
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", pair.prompt),
            "chosen": said("assistant", pair.chosen),
            "rejected": said("assistant", pair.rejected),
            **({"strengths": pair.strengths, "hold": pair.hold} if turned else {}),
        }
        for pair in ordered
    ]
    if len(rows) < 5000:  # bars that flash by hide the one that matters
        datasets.disable_progress_bars()
    folder = work / "pairs"
    if not (folder / "state.json").exists():
        datasets.Dataset.from_list(rows).save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def _shuffled(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    by_prompt: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    return [pair for prompt in prompts for pair in by_prompt[prompt]]
