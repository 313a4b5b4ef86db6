"""Layers beside experts, and layers of another kind: what PEFT makes of a vector is the vector."""

import dataclasses

import pytest
import torch
from test_adapter import IDS, by_peft, by_vector, trained

from alignvec.align.lora import linear_layers
from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.export import export

GLM = {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8,
    "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
}  # fmt: skip
QWEN = {
    "num_experts": 4, "decoder_sparse_step": 2, "num_experts_per_tok": 2, "head_dim": 8,
    "moe_intermediate_size": 24,
}  # fmt: skip
DENSE, SHARED = "layers.0.mlp", "shared_experts"


def nudged(base, folder):
    torch.manual_seed(1)
    model = load_checkpoint(base, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "config", "parts"),
    [
        ("qwen3_moe", QWEN, [DENSE]),
        ("qwen3_moe", QWEN, [""]),
        ("glm4_moe", GLM, [SHARED]),
        ("glm4_moe", GLM, [SHARED, "self_attn"]),
        ("glm4_moe", GLM, [DENSE, "self_attn"]),
        ("glm4_moe", GLM, [""]),
        ("glm4_moe", GLM, ["mlp.gate."]),
    ],
)
def test_peft_computes_an_exported_vector(architecture, config, parts, tiny, tmp_path):
    """Also of dense and shared MLPs, whose names PEFT would take for those of experts."""
    base = tiny(architecture, **config)
    vector = AlignmentVector.extract(base, nudged(base, tmp_path / "aligned")).in_memory()
    vector = compress(vector, rank=4, drop_rest=True)
    deltas = {n: d for n, d in vector.deltas.items() if any(part in n for part in parts)}
    vector = dataclasses.replace(vector, deltas=deltas)
    export(vector, "peft", tmp_path / "adapter", str(base))
    model = KnobModel.from_pretrained(base, {"k": vector}, dtype="float32", mode="fold")
    with torch.no_grad():
        plain, ours = (model.set(k=k).model(IDS).logits for k in (0, 1))
    assert (ours - plain).abs().max() > 0.05
    torch.testing.assert_close(by_peft(base, tmp_path / "adapter"), ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_vector(base, tmp_path / "adapter"), ours, atol=1e-4, rtol=1e-4)


def test_layers_that_peft_takes_for_experts_get_no_adapter(tiny):
    model = load_checkpoint(tiny("glm4_moe", **GLM), torch.float32)
    assert {name.rpartition(".")[2] for name in linear_layers(model)} == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


def test_layers_of_a_class_of_their_own_get_an_adapter(tiny):
    model = load_checkpoint(tiny("falcon", new_decoder_architecture=True), torch.float32)
    assert {name.rpartition(".")[2] for name in linear_layers(model)} == {
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
    }  # fmt: skip


def test_a_router_that_makes_no_tensor_is_no_linear_layer(tiny, tmp_path):
    base = tiny("llama4_text", intermediate_size_mlp=48, num_local_experts=4, head_dim=8)
    assert not any("router" in name for name in linear_layers(load_checkpoint(base, torch.float32)))
    vector = AlignmentVector.extract(base, nudged(base, tmp_path / "aligned")).in_memory()
    deltas = {n: d for n, d in vector.deltas.items() if "router" in n}
    vector = compress(dataclasses.replace(vector, deltas=deltas), rank=2, drop_rest=True)
    assert vector.deltas
    with pytest.raises(AlignvecError, match=r"router.*PEFT puts no factors on; fold the vector"):
        export(vector, "peft", tmp_path / "adapter", str(base))


@pytest.mark.parametrize("module", ["attn.c_proj", "mlp.c_fc"])
def test_a_parameter_is_not_turned_as_its_layer_is(module, tiny, tmp_path):
    options = {"target_modules": [], "target_parameters": [f"{module}.weight"]}
    folder = trained(tiny("gpt2"), tmp_path / "adapter", **options)
    torch.testing.assert_close(
        by_vector(tiny("gpt2"), folder), by_peft(tiny("gpt2"), folder), atol=1e-4, rtol=1e-4
    )


def test_square_experts_are_told_apart_or_refused(tiny, tmp_path):
    base = tiny(
        "nemotron_h", layers_block_type=["attention", "moe"], n_routed_experts=4, head_dim=8,
        num_experts_per_tok=2, moe_intermediate_size=32, moe_shared_expert_intermediate_size=24,
        n_group=1, topk_group=1, mamba_num_heads=8, mamba_head_dim=8, n_groups=1, chunk_size=8,
        ssm_state_size=8,
    )  # fmt: skip
    one = {"target_modules": [], "target_parameters": ["experts.up_proj"]}
    folder = trained(base, tmp_path / "one", **one)
    torch.testing.assert_close(by_vector(base, folder), by_peft(base, folder), atol=1e-4, rtol=1e-4)
    both = {"target_modules": [], "target_parameters": ["experts.up_proj", "experts.down_proj"]}
    with pytest.raises(AlignvecError, match=r"'target_parameters'.*nothing says which"):
        AlignmentVector.extract(base, trained(base, tmp_path / "both", **both))


def test_experts_that_were_trained_whole_are_refused_for_what_they_are(tiny, tmp_path):
    folder = trained(
        tiny("olmoe"), tmp_path / "a", target_modules=["q_proj"], modules_to_save=["experts"]
    )
    with pytest.raises(AlignvecError, match=r"'modules_to_save': .*experts in one tensor.*merge"):
        AlignmentVector.extract(tiny("olmoe"), folder)


def test_a_model_that_would_divide_its_weights_is_turned_back(tiny, tmp_path):
    """RWKV does so at its first pass, by default from the seventh layer on."""
    base = tiny("rwkv", num_hidden_layers=8, attention_hidden_size=32, context_length=64)
    vector = AlignmentVector.extract(base, nudged(base, tmp_path / "aligned"))
    model = KnobModel.from_pretrained(base, {"k": vector}, dtype="float32", mode="fold")
    with torch.no_grad():
        first, turned, back = (model.set(k=k).model(IDS).logits for k in (0, 1, 0))
        aligned = load_checkpoint(tmp_path / "aligned", torch.float32)(IDS).logits
    assert torch.equal(first, back)
    torch.testing.assert_close(turned, aligned, atol=1e-4, rtol=1e-4)
