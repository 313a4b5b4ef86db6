"""On one small engine: an adapter a setting against the gate, a fold and its way back, and the
memory of the slots.
"""

import asyncio
import hashlib
import os
from types import SimpleNamespace
from typing import get_args

import pytest

pytest.importorskip("vllm", reason="vLLM is in an environment of its own: make vllm-test")

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from vllm import LLM, SamplingParams
from vllm.config.lora import MaxLoRARanks
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from alignvec import AlignmentVector
from alignvec.base.identity import base_id
from alignvec.base.model_weights import ModelWeights
from alignvec.errors import AlignvecError
from alignvec.serve.vllm import fold, plugin
from alignvec.serve.vllm.bank import Bank
from alignvec.serve.vllm.memory import slots_bytes
from alignvec.serve.vllm.reach import check_reach
from alignvec.serve.vllm.resolver import Settings
from alignvec.vector.delta import LowRank

RANKS = {"medical": 4, "legal": 6}
SLOTS = 6
PROMPT = "How much of it may a grown person take in a day, and what if it was too much?"
TOKENS = 12


@pytest.fixture(scope="module")
def base(tiny):
    return tiny("llama", head_dim=32)


@pytest.fixture(scope="module")
def vectors(base, tmp_path_factory):
    """By knob the folder of a random vector on all linear layers."""
    weights, random = ModelWeights(base), torch.Generator().manual_seed(0)
    folders = {}
    for knob, rank in RANKS.items():
        deltas = {
            name: LowRank(
                torch.randn(rank, weights.shape(name)[1], generator=random) * 0.2,
                torch.randn(weights.shape(name)[0], rank, generator=random) * 0.2,
            )
            for name in weights
            if name.endswith("proj.weight")
        }
        folders[knob] = str(tmp_path_factory.mktemp("vectors") / knob)
        AlignmentVector(deltas, base_id(str(base)), name=knob).save_pretrained(folders[knob])
    return folders


@pytest.fixture(scope="module")
def engine(base, vectors, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNVEC_VECTORS", ",".join(f"{k}={v}" for k, v in vectors.items()))
        patch.setenv("ALIGNVEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        plugin.register()
        yield LLM(
            str(base), dtype="float32", max_model_len=256, enforce_eager=True, max_num_seqs=8,
            max_loras=SLOTS, gpu_memory_utilization=0.1, enable_prefix_caching=True, seed=0,
        )  # fmt: skip
    cleanup_dist_env_and_memory()


def answer(engine, knobs=None, adapter=None):
    asked = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=knobs and {"knobs": knobs}
    )
    (said,) = engine.generate([PROMPT], asked, lora_request=adapter, use_tqdm=False)
    return list(said.outputs[0].token_ids)


def answer_of_checkpoint(base, vectors, setting):
    """What transformers says with the setting added to the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for knob, strength in setting.items():
            for name, delta in AlignmentVector.from_pretrained(vectors[knob]).deltas.items():
                weights[name] += strength * delta.dense()
    ids = AutoTokenizer.from_pretrained(base)(PROMPT).input_ids
    with torch.no_grad():
        for _ in range(TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-TOKENS:]


def test_an_adapter_a_setting_says_what_the_gate_says(engine, base, vectors):
    bank = Bank.of(str(base), vectors, get_args(MaxLoRARanks), gated=False)
    settings = Settings(bank, ["tiny"])
    asked = [{"medical": 0.7}, {"legal": -0.3}, {"medical": 0.5, "legal": -0.2}, {"legal": 1.0}]
    answers = []
    for number, setting in enumerate(asked, 10):
        adapter = asyncio.run(settings.adapter(settings.rounded(setting)))
        adapter.lora_int_id = number
        answers.append(answer(engine, adapter=adapter))
        assert answers[-1] == answer(engine, setting)
        assert answers[-1] == answer_of_checkpoint(base, vectors, setting)
    assert len({tuple(one) for one in answers}) == len(asked)


def test_factors_that_would_do_nothing_are_refused(engine):
    def check(worker, name):
        check_reach(worker.model_runner.lora_manager, SimpleNamespace(loras={name: None}))

    engine.collective_rpc(check, args=("model.layers.0.self_attn.q_proj",))
    with pytest.raises(AlignvecError, match=r"transformer\.h\.0\.attn"):
        engine.collective_rpc(check, args=("transformer.h.0.attn",))


def hashed(worker):
    """Of all that a worker multiplies with."""
    model = worker.get_model()
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(name.encode() + parameter.detach().numpy().tobytes())
    for layer in model.modules():
        if isinstance(layer, BaseLinearLayerWithLoRA):
            weight = fold.unpacked(layer.base_layer, layer.lora_a_stacked[0].shape[-1])
            found.update(weight.numpy().tobytes())
    return found.hexdigest()


def test_a_fold_answers_as_its_checkpoint_and_leaves_no_trace(engine, base, vectors):
    def turned(setting):
        return engine.collective_rpc("alignvec_fold", args=(setting,))

    (before,), plain = engine.collective_rpc(hashed), answer(engine)
    assert turned({"medical": 0.7}) == [{"knobs": {"medical": 0.7}, "layers": 8}]
    assert answer(engine) == answer_of_checkpoint(base, vectors, {"medical": 0.7}) != plain
    # What a request asks is on top, and a fold takes the place of the one before.
    both = {"medical": 0.7, "legal": -0.4}
    assert answer(engine, {"legal": -0.4}) == answer_of_checkpoint(base, vectors, both)
    turned({"legal": 1.0})
    assert answer(engine) == answer_of_checkpoint(base, vectors, {"legal": 1.0})
    assert engine.collective_rpc(hashed) != [before]
    turned({})
    assert engine.collective_rpc(hashed) == [before]
    assert answer(engine) == plain


def test_a_fold_that_cannot_be_is_refused(engine):
    with pytest.raises(AlignvecError, match="did you mean 'medical'"):
        engine.collective_rpc("alignvec_fold", args=({"medcal": 1.0},))
    with pytest.raises(AlignvecError, match="is no number"):
        engine.collective_rpc("alignvec_fold", args=({"medical": float("nan")},))
    core = engine.llm_engine
    core.add_request("one", PROMPT, SamplingParams(max_tokens=TOKENS, ignore_eos=True))
    core.step()
    with pytest.raises(AlignvecError, match="being answered"):
        engine.collective_rpc("alignvec_fold", args=({"medical": 1.0},))
    while core.has_unfinished_requests():
        core.step()


def test_a_server_folds_between_its_requests(engine):
    done, broken = [], []

    class Client:
        vllm_config = engine.llm_engine.vllm_config

        async def pause_generation(self, mode):
            done.append(mode)

        async def collective_rpc(self, method, args):
            done.append(args)
            if broken:
                raise Exception("Call to collective_rpc method failed: no room")  # as vLLM does

        async def resume_generation(self):
            done.append("resumed")

    setting = {"medical": 0.7, "legal": 0.0}
    assert asyncio.run(fold.fold(Client(), {"medical": 0.7})) == setting
    assert done == ["wait", (setting,), "resumed"]
    with pytest.raises(AlignvecError, match="unknown knob"):
        asyncio.run(fold.fold(Client(), {"medcal": 0.7}))
    assert len(done) == 3
    broken.append(True)
    with pytest.raises(AlignvecError, match=r"not folded: .* no room"):
        asyncio.run(fold.fold(Client(), {}))
    assert done[-1] == "resumed"


def test_the_memory_of_the_slots_is_what_is_computed(engine, base):
    def taken(worker):
        manager = worker.model_runner.lora_manager._adapter_manager
        stacks = [
            stack
            for layer in manager.modules.values()
            for both in (layer.lora_a_stacked, layer.lora_b_stacked)
            for stack in (both if isinstance(both, tuple) else (both,))
        ]
        return sum(stack.nbytes for stack in stacks)

    weights = ModelWeights(base)
    shapes = {name: weights.shape(name) for name in weights}
    assert engine.collective_rpc(taken) == [slots_bytes(shapes, 16, SLOTS, itemsize=4)]


def layer_of(weight, factors, method=None):
    a, b = (factor[None, None] for factor in factors)
    method = method or fold.UnquantizedLinearMethod.__new__(fold.UnquantizedLinearMethod)
    return SimpleNamespace(
        base_layer=SimpleNamespace(weight=torch.nn.Parameter(weight), quant_method=method),
        lora_a_stacked=(a,), lora_b_stacked=(b,), output_slices=(len(b[0, 0]),), tp_size=1,
    )  # fmt: skip


def test_weights_that_were_replaced_are_not_taken_back():
    """By a reload, after which vLLM resets its adapters: what undid the fold is of the old ones."""
    done = []
    runner = SimpleNamespace(alignvec_undo=[lambda: done.append("back")])
    fold._reset_lora_state(lambda one: done.append("reset"), runner)
    fold._take_out(runner.alignvec_undo)
    assert done == ["reset"]


def test_plain_weights_are_changed_where_they_are_and_come_back():
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=random).bfloat16()
    a = torch.randn(3, 24, generator=random).bfloat16()
    b = torch.randn(40, 3, generator=random).bfloat16()
    layer, strengths = layer_of(weight.clone(), (a, b)), torch.tensor([0.7, 0.7, -0.3])
    place, undo = layer.base_layer.weight.data_ptr(), []
    fold._add("layer", layer, 0, strengths, undo)
    wanted = (weight.float() + b.float() @ (strengths[:, None] * a.float())).bfloat16()
    assert torch.equal(layer.base_layer.weight, wanted)
    fold._take_out(undo)
    assert torch.equal(layer.base_layer.weight, weight)
    assert layer.base_layer.weight.data_ptr() == place


def test_a_sum_beyond_its_dtype_is_refused_and_taken_back():
    layer, undo = layer_of(torch.ones(2, 2).half(), (torch.ones(1, 2), torch.ones(2, 1))), []
    with pytest.raises(AlignvecError, match="layer with this setting is beyond what"):
        fold._add("layer", layer, 0, torch.tensor([1e6]), undo)
    fold._take_out(undo)
    assert torch.equal(layer.base_layer.weight, torch.ones(2, 2).half())


def test_quantised_weights_are_not_folded():
    class MarlinMethod:
        pass

    layer = layer_of(torch.ones(2, 2), (torch.ones(1, 2), torch.ones(2, 1)), MarlinMethod())
    with pytest.raises(AlignvecError, match=r"qkv is quantised \(MarlinMethod\)"):
        fold._check("qkv", layer, SimpleNamespace())
