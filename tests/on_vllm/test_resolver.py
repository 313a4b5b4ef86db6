"""Names of models as adapters of settings: what vLLM's list of them and the disk then hold."""

import asyncio
import gc
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is in an environment of its own: make vllm-test")

import torch
from safetensors import safe_open
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError
from vllm.lora.resolver import LoRAResolverRegistry

from alignvec import AlignmentVector
from alignvec.base.identity import base_id
from alignvec.base.model_weights import ModelWeights
from alignvec.errors import AlignvecError
from alignvec.serve.vllm import plugin, resolver
from alignvec.serve.vllm.bank import Bank
from alignvec.serve.vllm.resolver import NAME, Settings
from alignvec.serve.vllm.told import Told
from alignvec.vector.delta import LowRank

RANKS = MaxLoRARanks.__args__
MEASURED = {"levels": {"expert": 1.2}, "safe": [-2, 2]}


@pytest.fixture
def vector(tiny, tmp_path, monkeypatch):
    """Of some layers; of a mixture of experts, of experts, too."""
    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))

    def make(architecture="llama", ending="q_proj.weight"):
        base = tiny(architecture)
        weights = ModelWeights(base)
        deltas = {
            name: LowRank(
                torch.randn(2, weights.shape(name)[1]), torch.ones(weights.shape(name)[0], 2)
            )
            for name in weights
            if name.endswith(ending)
        }
        made = AlignmentVector(deltas, base_id(str(base)), name="medical", calibration=MEASURED)
        made.save_pretrained(tmp_path / architecture)
        return str(base), {"medical": str(tmp_path / architecture)}

    return make


@pytest.fixture
def models(vector):
    """vLLM's own list of models, on an engine that takes every adapter."""
    base, sources = vector()
    loaded = []

    async def add_lora(request):
        loaded.append(request)
        assert (Path(request.lora_path) / "adapter_model.safetensors").exists()
        return True

    settings = Settings(Bank.of(base, sources, RANKS, gated=False), ["me/m", "m"], most=3)
    resolver.around(OpenAIServingModels, "resolve_lora", resolver._resolve_lora)
    LoRAResolverRegistry.resolvers[NAME] = settings
    client = SimpleNamespace(
        add_lora=add_lora, model_config=SimpleNamespace(model=base), renderer=None,
        input_processor=None,
    )  # fmt: skip
    yield SimpleNamespace(
        served=OpenAIServingModels(client, [BaseModelPath("me/m", base), BaseModelPath("m", base)]),
        loaded=loaded,
    )
    del LoRAResolverRegistry.resolvers[NAME]


def folders():
    return sorted(p.name for p in Path(os.environ["ALIGNVEC_CACHE"]).glob("vllm/settings-0/[!.]*"))


def test_equal_settings_are_one_adapter(models):
    names = ["m@medical=0.7", "m:medical=0.70", "me/m@medical=0.699", "m@medical=0.71"]
    found = [asyncio.run(models.served.resolve_lora(name)) for name in names]
    assert {one.lora_name for one in found} == {"me/m@medical=0.7"}
    assert len({one.lora_int_id for one in found}) == len(models.loaded) == 1
    assert models.served.lora_requests["m@medical=0.71"] is found[0]
    level = asyncio.run(models.served.resolve_lora("m@medical=expert"))
    assert level.lora_name == "me/m@medical=1.2"
    assert len(folders()) == 2


def test_what_is_no_setting_is_told(models):
    for name, wanted in [
        ("m@legal=1", "unknown knob 'legal'; one of medical"),
        ("m@medical=ex", "medical"),
        ("m@medical", "KNOB=STRENGTH"),
    ]:
        with pytest.raises(VLLMValidationError, match=wanted):
            asyncio.run(models.served.resolve_lora(name))
    other = asyncio.run(models.served.resolve_lora("gpt@medical=1"))
    assert isinstance(other, ErrorResponse)
    assert other.error.code == 404
    assert not folders()


def test_names_and_folders_are_bounded_and_none_in_use_goes(models, monkeypatch):
    monkeypatch.setattr(resolver, "_IDLE", 0)
    served = models.served

    def ask(strength):
        name = f"m@medical={strength}"
        if name not in served.lora_requests:  # as vLLM does for each request
            asyncio.run(served.resolve_lora(name))
        return served.lora_requests[name]

    held = ask(0.1)  # by a request that runs all the time
    for number in range(2, 12):
        ask(0.05 * number)
        models.loaded[:] = []  # the engine has its own
        gc.collect()
        time.sleep(0.01)
    assert len(served.lora_requests) <= 3
    assert len(folders()) <= 3 + 1 + 1  # with the one in use and the one that was just made
    assert (Path(held.lora_path) / "adapter_config.json").exists()
    assert len(served.lora_resolver_lock) <= 4
    # The one asked for last stays, wherever it came first.
    first = next(iter(served.lora_requests))
    kept = ask(float(first.partition("=")[2]))
    ask(2.0)
    assert first in served.lora_requests
    assert Path(kept.lora_path).exists()


def test_experts_are_told_apart_by_the_way(vector):
    base, sources = vector("mixtral", "experts.1.w1.weight")
    with pytest.raises(AlignvecError, match="ALIGNVEC_WAY=resolver"):
        Bank.of(base, sources, RANKS)
    bank = Bank.of(base, sources, RANKS, gated=False)
    settings = Settings(bank, ["m"])
    adapter = asyncio.run(settings.adapter(settings.rounded({"medical": 0.5})))
    with safe_open(Path(adapter.lora_path) / "adapter_model.safetensors", "pt") as filed:
        # vLLM knows the layers by the names in the model's files, not by those of transformers.
        assert "block_sparse_moe.experts.1.w1" in " ".join(filed.keys())
        assert len(filed.keys()) == 2 * 2 * 3 * 4  # of all experts
    read = AlignmentVector.extract(base, adapter.lora_path)
    whole = AlignmentVector.from_pretrained(sources["medical"])
    for name, delta in whole.deltas.items():
        assert torch.allclose(read.deltas[name].dense(), 0.5 * delta.dense(), atol=1e-5)


def test_knobs_that_a_request_turns_otherwise_are_refused():
    asked = SimpleNamespace(extra_args={"knobs": {"medical": 0.7}})
    with pytest.raises(VLLMValidationError, match="by the name of the model"):
        resolver._process_inputs(None, None, "request", "prompt", asked)


def test_the_way_is_told(monkeypatch):
    told = {"ALIGNVEC_VECTORS": "medical=there", "ALIGNVEC_WAY": "resolver"}
    assert (Told.read(told).way, Told.read(told).step, Told.read(told).most) == (
        "resolver",
        0.05,
        64,
    )
    for name, value in [
        ("ALIGNVEC_WAY", "fast"), ("ALIGNVEC_STEP", "0"), ("ALIGNVEC_MAX_ADAPTERS", "none"),
    ]:  # fmt: skip
        with pytest.raises(AlignvecError, match=name):
            Told.read({**told, name: value})


def test_an_unknown_release_names_the_way_that_is_left(monkeypatch):
    monkeypatch.setenv("ALIGNVEC_VECTORS", "medical=there")
    monkeypatch.setattr(plugin, "vllm_version", "0.99.0")
    with pytest.raises(AlignvecError, match="ALIGNVEC_WAY=resolver"):
        plugin.register()
    monkeypatch.setenv("ALIGNVEC_WAY", "resolver")
    with pytest.raises(AlignvecError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        plugin.register()
