"""Sixteen settings in one batch are sixteen folded checkpoints, whatever vLLM does with the batch.

Each engine is made once; what is asked of it are the tokens, one for one.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is in an environment of its own: make vllm-test")

import engines
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.request import LoRARequest
from vllm.sampling_params import BeamSearchParams
from vllm.v1.worker.gpu.lora_utils import LoraState

from alignvec import AlignmentVector
from alignvec.errors import AlignvecError
from alignvec.serve.vllm import worker
from alignvec.serve.vllm.bank import Bank
from alignvec.serve.vllm.gate import Factors, Gated
from alignvec.serve.vllm.request import NAME, NUMBER, setting_of, turned
from alignvec.vector.export import export

SETTINGS = engines.settings(16)
SHARED = "a shared prefix about tea and its leaves in the garden of the old house. "
PROMPTS = [f"{SHARED * 2}question {number % 3}" for number in range(16)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return engines.make(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def folded(made):
    return engines.Folded(made)


@pytest.fixture(scope="module")
def llm(made):
    with engines.environment(made):
        return engines.engine(made, enable_prefix_caching=True, max_num_batched_tokens=64)


def check(folded, llm, prompts=PROMPTS, settings=SETTINGS):
    answers = engines.written(llm, prompts, [one or None for one in settings])
    for prompt, setting, answer in zip(prompts, settings, answers, strict=True):
        folded.check(prompt, setting, answer.outputs[0].token_ids)
    return answers


def counted(llm, name):
    return sum(one.value for one in llm.get_metrics() if one.name == name)


def test_prefix_cache_and_chunks(folded, llm):
    """Prompts are read in parts of 64 tokens; settings share prefixes, and no cached block."""
    first = check(folded, llm)
    assert len({tuple(answer.outputs[0].token_ids) for answer in first}) >= 10
    assert not any(answer.num_cached_tokens for answer in first if answer.num_cached_tokens)
    again = check(folded, llm)
    assert all(answer.num_cached_tokens >= 64 for answer in again)


def test_a_prefix_that_another_setting_left_is_not_used(folded, llm):
    prompt = f"another {SHARED * 2}"
    for setting in ({"medical": 0.5}, {"medical": -0.5}, {}, {"legal": 0.5}, {"medical": 0.5}):
        (answer,) = check(folded, llm, [prompt], [setting])
        seen = setting == {"medical": 0.5} and answer.num_cached_tokens
        assert bool(answer.num_cached_tokens) == bool(seen)


def test_a_step_after_another_has_its_own_factors(folded, llm):
    """The requests of two steps have the same places and adapters; their strengths differ."""
    for strength in (0.3, -0.8, 0.6):
        check(folded, llm, ["how?"] * 4, [{"legal": strength * (row + 1) / 4} for row in range(4)])


def test_several_answers_and_beams(folded, llm):
    setting = {"medical": 0.7, "legal": -0.4}
    sampled = SamplingParams(temperature=0.01, n=3, max_tokens=8, extra_args={"knobs": setting})
    (answer,) = llm.generate([PROMPTS[0]], sampled, use_tqdm=False)
    assert len(answer.outputs) == 3
    for one in answer.outputs:
        folded.check(PROMPTS[0], setting, one.token_ids)
    (beams,) = llm.beam_search(
        [{"prompt": "how?"}],
        BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True),
        lora_request=turned(setting),
    )
    asked = folded.tokenizer("how?")["input_ids"]
    folded.check("how?", setting, beams.sequences[0].tokens[len(asked) :])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"medica": 1}, "medical"),
        ({"medical": "expert"}, "medical"),
        ({"medical": float("nan")}, "medical"),
        ("medical", "medical"),
        (0.7, "knobs"),
        ({"medical": [1]}, "medical"),
        ({"medical": 1e20}, "spoil vLLM's cache for others"),
    ],
)
def test_what_is_no_setting_is_refused_before_anything_is_computed(llm, knobs, message):
    with pytest.raises(VLLMValidationError, match=message):
        engines.written(llm, ["how?"], [knobs])


def test_a_misspelt_argument_is_not_passed_over(llm):
    params = SamplingParams(max_tokens=2, extra_args={"knob": {"medical": 1}})
    with pytest.raises(VLLMValidationError, match="did you mean 'knobs'"):
        llm.generate(["how?"], params, use_tqdm=False)


def test_knobs_and_an_adapter_are_not_both(llm, made):
    params = SamplingParams(max_tokens=2, extra_args={"knobs": {"medical": 1}})
    own = LoRARequest("theirs", 1, str(made["medical"]))
    with pytest.raises(VLLMValidationError, match="not both"):
        llm.generate(["how?"], params, lora_request=own, use_tqdm=False)


def test_texts_of_settings_are_settings(folded, llm):
    (answer,) = engines.written(llm, ["how?"], ["medical=0.7,legal=-0.4"])
    folded.check("how?", {"medical": 0.7, "legal": -0.4}, answer.outputs[0].token_ids)


def test_what_only_routes_can_do_asks_for_the_routes(made):
    told = {"ALIGNVEC_SET": "medical=1", "VLLM_PLUGINS": "others"}
    with engines.environment(made, **told), pytest.raises(AlignvecError, match="VLLM_PLUGINS"):
        engines.engine(made)


# Engines of their own, after the tests of the one above: vLLM has one at a time in a process.


def test_forced_preemption(made, folded):
    with engines.environment(made):
        llm = engines.engine(made, max_num_batched_tokens=64, num_gpu_blocks_override=24)
    check(folded, llm)
    assert counted(llm, "vllm:num_preemptions") > 0


def test_beside_an_adapter_of_the_users(made, folded):
    """Two slots: vLLM's own products, with the factors between them."""
    with engines.environment(made):
        llm = engines.engine(made, max_loras=2)
    settings = [{"medical": 0.6, "money": -0.5}, {}, {"legal": 0.8}]
    params = [
        SamplingParams(
            temperature=0, max_tokens=12, ignore_eos=True,
            extra_args={"knobs": one} if one else None,
        )
        for one in settings
    ]  # fmt: skip
    own = LoRARequest("theirs", 1, str(made["medical"]))
    answers = llm.generate(["how?"] * 3, params, lora_request=[None, own, None], use_tqdm=False)
    settings[1] = {"medical": 1.0}
    for setting, answer in zip(settings, answers, strict=True):
        folded.check("how?", setting, answer.outputs[0].token_ids)


def test_compiled_and_with_speculation(made, folded):
    with engines.environment(made):
        llm = engines.engine(
            made,
            enforce_eager=False,
            speculative_config={
                "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3,
            },
        )  # fmt: skip
    check(folded, llm)


def test_a_plain_adapter_is_a_knob(made, tmp_path):
    theirs = tmp_path / "theirs"
    export(AlignmentVector.from_pretrained(made["medical"]), "peft", theirs)
    sources = {"theirs": str(theirs), "legal": str(made["legal"])}
    bank = Bank.of(str(made["base"]), sources, (8, 16))
    assert bank.ranks == {"legal": 6, "theirs": 4}
    assert bank.rank == 16
    assert bank.vectors["theirs"] == AlignmentVector.from_pretrained(made["medical"])


PARALLEL = """
import json, sys
from pathlib import Path
import engines
if __name__ == "__main__":
    made = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
    settings = json.loads(sys.argv[2])
    with engines.environment(made):
        llm = engines.engine(made, tensor_parallel_size=2)
        answers = engines.written(llm, json.loads(sys.argv[3]), [one or None for one in settings])
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    Path(sys.argv[4]).write_text(json.dumps(tokens))  # workers print at their end, too
"""


def test_two_tensor_parallel_processes(made, folded, tmp_path):
    script, out = tmp_path / "parallel.py", tmp_path / "answers.json"
    script.write_text(PARALLEL)
    paths = json.dumps({name: str(path) for name, path in made.items()})
    environment = engines.for_processes(VLLM_CPU_OMP_THREADS_BIND="0|1")
    done = subprocess.run(
        [sys.executable, script, paths, json.dumps(SETTINGS), json.dumps(PROMPTS), out],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(out.read_text())
    for prompt, setting, tokens in zip(PROMPTS, SETTINGS, answers, strict=True):
        folded.check(prompt, setting, tokens)


# What the CPU build cannot run, by its own classes: the second model runner's state, and the
# products as the kernels of GPUs are called.


def factors_of(tokens):
    return Factors(["a", "b"], [0, 0, 1, 1, 1, 0, 0, 0], tokens, torch.empty(0))


def row(a, b):
    return [a, a, b, b, b, a, a, a]


def test_the_second_model_runner_takes_the_strengths_when_a_request_is_added():
    worker.follow()
    state = LoraState(8)
    state.alignvec = factors = factors_of(64)
    where = factors.values.data_ptr()
    state.add_request("x", 4, turned({"a": 0.5, "b": -1}))
    state.add_request("y", 2, None)
    state.add_request("z", 7, LoRARequest("theirs", 1, "there"))
    ids, found, active = state.make_lora_inputs(
        ["y", "x", "z"], np.array([2, 4, 7]), np.array([1, 2, 1])
    )
    assert ids == (0, NUMBER, 1)
    assert found == (0, NUMBER, NUMBER, 1)
    assert {one.lora_name for one in active} == {NAME, "theirs"}
    assert factors.values[:4].tolist() == [row(0, 0), row(0.5, -1), row(0.5, -1), row(1, 1)]
    # The next step: the same places, another request in one of them.
    state.remove_request("x")
    state.add_request("w", 4, turned({"b": 2.0}))
    state.make_lora_inputs(["w", "z"], np.array([4, 7]), np.array([1, 1]))
    assert factors.values[:2].tolist() == [row(0, 2), row(1, 1)]
    assert factors.values.data_ptr() == where  # graphs read there
    state.make_lora_inputs(["y"], np.array([2]), np.array([1]))
    assert not factors.used


class Products(PunicaWrapperBase):
    """As PunicaWrapperGPU's: y [slices, tokens, rank] is overwritten."""

    def add_shrink(self, y, x, lora_a_stacked, scale, **kwargs):
        for part, a in zip(y, lora_a_stacked, strict=True):
            part.copy_(x @ a[0, 0].T)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_multiplies_its_columns(workers):
    factors = factors_of(16)
    factors.write([turned({"a": 0.5, "b": -2}), None], np.array([3, 2]))
    x, a = torch.randn(5, 6), torch.randn(1, 1, 8, 6)
    expected = torch.tensor([row(0.5, -2)] * 3 + [row(0, 0)] * 2) * (x @ a[0, 0].T)
    parts = []
    for number in range(workers):
        wrapper = type("Both", (Gated, Products), {"__init__": lambda self: None})
        wrapper.__abstractmethods__ = frozenset()
        one = wrapper()
        one.factors, one.shard = factors, number
        mine = a[:, :, number * 8 // workers : (number + 1) * 8 // workers]
        y = torch.empty(1, 5, 8 // workers)
        one.add_shrink(y, x, (mine,), 1.0)
        parts.append(y[0])
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_equal_settings_are_equal_words():
    one = turned({"b": -0.0, "a": 1, "c": 0.25})
    assert one == turned({"c": 0.25, "a": 1.0})
    assert one.lora_path == turned({"c": 0.25, "a": 1.0, "d": 0}).lora_path
    assert setting_of(one.lora_path) == {"a": 1, "c": 0.25}
    assert turned({"a": 0.0}) is None
