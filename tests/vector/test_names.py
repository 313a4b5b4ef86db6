"""Adapters and vectors where the names, the layout or the ties of file and model differ."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from alignvec.base.identity import BaseId
from alignvec.base.live import open_weights
from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.knobs.gate import Gate
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.export import export
from alignvec.vector.fold import fold

IDS = torch.tensor([[5, 6, 7, 8, 30, 41, 9]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def load(folder):
    return load_checkpoint(folder, torch.float32)


def through_peft(base, adapter):
    return logits(PeftModel.from_pretrained(load(base), adapter).eval())


def train(base, folder, targets, **options):
    """An adapter by plain PEFT, with factors as if trained; the logits of its model."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return through_peft(base, folder)


def hub_gpt2(tiny, folder):
    """As it lies on the hub: no `transformer.` in the names, no head."""
    shutil.copytree(tiny("gpt2"), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


ADAPTERS = {
    "gpt2": ("gpt2", ["c_attn", "attn.c_proj"], {"fan_in_fan_out": True}),
    "gpt2 of the hub": ("hub", ["c_attn", "mlp.c_proj"], {"fan_in_fan_out": True}),
    "gpt_neox with its head": ("gpt_neox", ["query_key_value", "lm_head"], {}),
    "mixtral's router": ("mixtral", ["q_proj", "gate"], {}),
    "mixtral's experts": (
        "mixtral",
        ["q_proj"],
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "one of mixtral's": ("mixtral", ["q_proj"], {"target_parameters": ["experts.gate_up_proj"]}),
    "olmoe's experts": ("olmoe", ["q_proj"], {"target_parameters": ["mlp.experts.down_proj"]}),
    "gpt_oss's experts": (
        "gpt_oss",
        ["q_proj"],
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}


def base_of(architecture, tiny, folder):
    if architecture == "hub":
        return hub_gpt2(tiny, folder)
    extra = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return tiny(architecture, **(extra if architecture == "gpt_oss" else {}))


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_by_plain_peft_goes_in_and_out(case, tiny, tmp_path):
    architecture, targets, options = ADAPTERS[case]
    base = base_of(architecture, tiny, tmp_path / "base")
    wanted = train(base, tmp_path / "adapter", targets, **options)
    vector = AlignmentVector.extract(base, tmp_path / "adapter")
    fold(base, [(vector, 1.0)], tmp_path / "folded")
    torch.testing.assert_close(logits(load(tmp_path / "folded")), wanted, atol=1e-4, rtol=1e-4)
    model = KnobModel.from_pretrained(base, {"k": vector}, dtype="float32", mode="fold")
    torch.testing.assert_close(logits(model.set(k=1).model), wanted, atol=1e-4, rtol=1e-4)
    if architecture == "gpt_oss":  # one tensor in the file too: its change is dense
        with pytest.raises(AlignvecError, match="is dense"):
            export(vector, "peft", tmp_path / "again", str(base))
        return
    export(vector, "peft", tmp_path / "again", str(base))
    torch.testing.assert_close(through_peft(base, tmp_path / "again"), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flag", [True, False])
def test_each_layer_is_turned_by_its_own_kind(flag, tiny, tmp_path):
    """Square weights: their shape says nothing."""
    base = tmp_path / "base"
    shutil.copytree(tiny("gpt2"), base)
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(96, 32)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    wanted = train(base, tmp_path / "a", ["attn.c_proj", "lm_head"], fan_in_fan_out=flag)
    fold(base, [(AlignmentVector.extract(base, tmp_path / "a"), 1.0)], tmp_path / "folded")
    torch.testing.assert_close(logits(load(tmp_path / "folded")), wanted, atol=1e-4, rtol=1e-4)


def test_a_head_that_parts_from_its_embedding(tiny, tmp_path):
    """An adapter on a tied head moves the head alone: on disk, live in both modes, and by PEFT."""
    base = tiny("llama", tie_word_embeddings=True)
    wanted = train(base, tmp_path / "a", ["q_proj", "lm_head"])
    vector = AlignmentVector.extract(base, tmp_path / "a")
    fold(base, [(vector, 1.0)], tmp_path / "folded")
    torch.testing.assert_close(logits(load(tmp_path / "folded")), wanted, atol=1e-4, rtol=1e-4)
    assert not json.loads((tmp_path / "folded/config.json").read_text())["tie_word_embeddings"]
    export(vector, "peft", tmp_path / "again")
    torch.testing.assert_close(through_peft(base, tmp_path / "again"), wanted, atol=1e-4, rtol=1e-4)
    for mode in ("fold", "gate"):
        knobs = KnobModel.from_pretrained(base, {"k": vector}, dtype="float32", mode=mode)
        torch.testing.assert_close(logits(knobs.set(k=1).model), wanted, atol=1e-4, rtol=1e-4)
        knobs.set(k=0)
        assert knobs.model.lm_head.weight is knobs.model.model.embed_tokens.weight
        assert torch.equal(logits(knobs.model), logits(load(base)))
    fold(base, [(vector, 0.0)], tmp_path / "none")
    assert json.loads((tmp_path / "none/config.json").read_text())["tie_word_embeddings"]


def test_vectors_that_move_both_and_one_of_two_that_are_tied_add_up(tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=True)
    both, apart = load(base), load(base)
    with torch.no_grad():
        both.model.embed_tokens.weight.add_(0.1 * torch.randn(96, 32))
        apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight + torch.randn(96, 32))
    apart.config.tie_word_embeddings = False
    for model, name in ((both, "both"), (apart, "apart")):
        model.save_pretrained(tmp_path / name)
    vectors = [AlignmentVector.extract(base, tmp_path / name) for name in ("both", "apart")]
    assert set(vectors[1].deltas) == {"lm_head.weight"}
    summed = load(base)
    with torch.no_grad():
        embedding, moved = summed.model.embed_tokens.weight.clone(), both.model.embed_tokens.weight
        summed.model.embed_tokens.weight = torch.nn.Parameter(embedding + 0.5 * (moved - embedding))
        head = embedding + 0.5 * (moved - embedding) + 2 * (apart.lm_head.weight - embedding)
        summed.lm_head.weight = torch.nn.Parameter(head)
    wanted = logits(summed)
    fold(base, [(0.5 * vectors[0] + 2.0 * vectors[1], 1.0)], tmp_path / "folded")
    torch.testing.assert_close(logits(load(tmp_path / "folded")), wanted, atol=1e-4, rtol=1e-4)
    for mode in ("fold", "gate"):
        knobs = dict(zip("ab", vectors, strict=True))
        model = KnobModel.from_pretrained(base, knobs, dtype="float32", mode=mode)
        found = logits(model.set(a=0.5, b=2).model)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_longer_vocabulary_has_a_way_out(tiny):
    base, longer = tiny("llama"), tiny("llama", vocab_size=104)
    with pytest.raises(AlignvecError, match="vocabulary") as caught:
        AlignmentVector.extract(base, longer)
    patterns = str(caught.value).split("--allow-missing '")[1:]
    vector = AlignmentVector.extract(
        base, longer, allow_missing=[pattern.partition("'")[0] for pattern in patterns]
    )
    assert vector.deltas
    assert not {"model.embed_tokens.weight", "lm_head.weight"} & vector.deltas.keys()


@pytest.mark.parametrize("kept", [slice(0, 2), slice(2, 4)])
def test_some_experts_alone_are_exported_whole(kept, tiny, nudged, tmp_path):
    """PEFT stacks the factors of experts in the order in which it finds them."""
    base = tiny("mixtral")
    vector = compress(AlignmentVector.extract(base, nudged("mixtral")), rank=2, drop_rest=True)
    names = [f"model.layers.1.mlp.experts.{number}.w1.weight" for number in range(4)][kept]
    deltas = {name: vector.deltas[name] for name in names}
    some = AlignmentVector(deltas, vector.base)
    with pytest.raises(AlignvecError, match="--base"):
        export(some, "peft", tmp_path / "lora")
    export(some, "peft", tmp_path / "lora", str(base))
    fold(base, [(some, 1.0)], tmp_path / "folded")
    wanted = logits(load(tmp_path / "folded"))
    assert not torch.allclose(wanted, logits(load(base)), atol=1e-3)
    torch.testing.assert_close(through_peft(base, tmp_path / "lora"), wanted, atol=1e-4, rtol=1e-4)


def test_a_buffer_cannot_be_gated(tiny, tmp_path):
    base = tiny("llama")
    model = load(base)
    model.model.layers[0].register_buffer("bias_of_state", torch.ones(3))
    moved = load(base)
    moved.model.layers[0].register_buffer("bias_of_state", torch.zeros(3))
    vector = AlignmentVector.extract(model, moved)
    assert set(vector.deltas) == {"model.layers.0.bias_of_state"}
    with pytest.raises(AlignvecError, match=r"bias_of_state cannot be gated"):
        Gate(model, {"k": vector})


def test_a_gguf_export_takes_no_namesake(tiny, tmp_path, monkeypatch):
    base = tmp_path / "own" / "base"
    shutil.copytree(tiny("llama"), base)
    shutil.copytree(tiny("llama", seed=1), tmp_path / "work" / "base")
    train(base, tmp_path / "a", ["q_proj"])
    vector = AlignmentVector.extract(base, tmp_path / "a")
    monkeypatch.chdir(tmp_path / "work")
    for given in (None, "base"):
        with pytest.raises(AlignvecError, match=r"is not the base of .*--base"):
            export(vector, "gguf", tmp_path / "a.gguf", given)
    shutil.rmtree(tmp_path / "work" / "base")
    with pytest.raises(AlignvecError, match=r"no base at 'base'.*--base"):
        export(vector, "gguf", tmp_path / "a.gguf")
    export(vector, "gguf", tmp_path / "a.gguf", str(base))


def test_a_gguf_export_has_no_head_that_the_base_ties(tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=True)
    train(base, tmp_path / "adapter", ["q_proj", "lm_head"])
    vector = AlignmentVector.extract(base, tmp_path / "adapter")
    with pytest.raises(AlignvecError, match=r"changes lm_head\.weight, which this base ties"):
        export(vector, "gguf", tmp_path / "a.gguf", str(base))
    assert not (tmp_path / "a.gguf").exists()


TABLES = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("changed", TABLES)
def test_a_base_with_one_value_trained_further_is_another_one(changed, tiny, nudged, tmp_path):
    """64 values of a tensor would not tell."""
    size = {"hidden_size": 64, "intermediate_size": 96}
    base, other = tiny(**size), tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors[changed][7, 5] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert open_weights(base).fingerprint == open_weights(other).fingerprint
    vector = AlignmentVector.extract(base, nudged(**size))
    beside = AlignmentVector.extract(other, nudged(**size))
    with pytest.raises(AlignvecError, match="belongs to another base"):
        fold(other, [(vector, 1.0)], tmp_path / "folded")
    assert not (tmp_path / "folded").exists()
    with pytest.raises(AlignvecError, match="belongs to another base"):
        KnobModel.from_pretrained(other, {"k": vector})
    with pytest.raises(AlignvecError, match="vectors of different bases"):
        vector + beside
    vector.save_pretrained(tmp_path / "vector")
    again = AlignmentVector.from_pretrained(tmp_path / "vector")
    assert again.base == vector.base
    older = dataclasses.replace(again, base=BaseId(again.base.id, again.base.fingerprint))
    fold(base, [(older, 1.0)], tmp_path / "folded")  # 0.1 knew no more than the fingerprint
    assert older + vector == vector + vector
