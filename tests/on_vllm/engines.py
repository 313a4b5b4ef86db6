"""Engines for the tests that run where vLLM is: a tiny random model, three vectors, and the tokens
that transformers writes with every setting folded into its weights.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from alignvec import AlignmentVector
from alignvec.base.identity import base_id
from alignvec.base.model_weights import ModelWeights
from alignvec.serve.vllm.told import VECTORS
from alignvec.vector.delta import LowRank
from conftest import build

KNOBS = {"medical": 4, "legal": 6, "money": 3}  # with their ranks
CLOSE = 1e-3  # between the logits of two tokens: a near-tie, which either may win


def make(folder: Path) -> dict[str, Path]:
    """A base, and vectors whose ranks and layers differ; by name."""
    base = build("llama", folder / "base", head_dim=32, num_hidden_layers=3)
    weights = ModelWeights(base)
    chance = torch.Generator().manual_seed(0)
    made = {"base": base}
    for knob, rank in KNOBS.items():
        deltas = {}
        for name in sorted(weights):
            if not name.endswith("proj.weight") or (knob == "legal" and "k_proj" in name):
                continue
            shape = weights.shape(name)
            a = torch.randn(rank, shape[1], generator=chance)
            b = torch.randn(shape[0], rank, generator=chance)
            deltas[name] = LowRank(0.3 * a, 0.3 * b)
        vector = AlignmentVector(deltas, base_id(base), name=knob)
        made[knob] = vector.save_pretrained(folder / knob)
    return made


def settings(count: int) -> list[dict[str, float]]:
    """Each of its own, some with a knob left out, one of them the base."""
    chance = random.Random(1)
    found = [
        {knob: round(chance.uniform(-1, 1), 2) for knob in KNOBS if chance.random() < 0.8}
        for _ in range(count)
    ]
    found[3] = {}
    return found


@contextmanager
def environment(made: Mapping[str, Path], **more: str) -> Iterator[None]:
    """What an engine is told."""
    vectors = ",".join(f"{knob}={made[knob]}" for knob in KNOBS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {VECTORS: vectors, **more}.items():
            patch.setenv(name, value)
        yield


def engine(made: Mapping[str, Path], **options):
    """vLLM on the base, in this process, float32."""
    from vllm import LLM

    return LLM(
        str(made["base"]),
        max_model_len=256,
        max_num_seqs=16,
        gpu_memory_utilization=0.1,
        disable_log_stats=False,
        **{"dtype": "float32", "enforce_eager": True, "block_size": 32, **options},
    )


def written(llm, prompts: Sequence[str], knobs: Sequence[object], tokens: int = 16):
    """What vLLM answers greedily, each prompt under its own setting."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True,
            extra_args=None if one is None else {"knobs": one},
        )
        for one in knobs
    ]  # fmt: skip
    return llm.generate(list(prompts), params, use_tqdm=False)


def for_processes(**more: str) -> dict[str, str]:
    """The environment of a process that imports the tests' files."""
    paths = os.pathsep.join(
        [*(path for path in sys.path if path), os.environ.get("PYTHONPATH", "")]
    )
    return {**os.environ, "PYTHONPATH": paths, **more}


class Folded:
    """The base in transformers, with a setting in its weights."""

    def __init__(self, made: Mapping[str, Path]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(made["base"])
        self._model = LlamaForCausalLM.from_pretrained(made["base"], dtype=torch.float32)
        self._theta = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self._deltas = {knob: AlignmentVector.from_pretrained(made[knob]).deltas for knob in KNOBS}

    def set(self, setting: Mapping[str, float]) -> None:
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._theta[name])
                for knob, strength in setting.items():
                    if name in self._deltas[knob]:
                        parameter += strength * self._deltas[knob][name].dense()

    def check(
        self,
        prompt: str,
        setting: Mapping[str, float],
        tokens: Sequence[int],
        close: float = CLOSE,
    ) -> None:
        """Each of `tokens` is the likeliest after those before it, or as likely."""
        self.set(setting)
        asked = self.tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = self._model(torch.tensor([[*asked, *tokens]])).logits[0, len(asked) - 1 : -1]
        best = logits.max(-1).values
        got = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        assert (best - got).max() < close, (setting, (best - got).tolist())


os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
