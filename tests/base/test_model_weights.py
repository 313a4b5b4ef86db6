"""A checkpoint is read as transformers reads it: which file, names, ties and bytes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignvec.base.live import open_weights
from alignvec.base.load import load_checkpoint
from alignvec.base.source import find_base
from alignvec.errors import AlignvecError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny, tmp_path):
    """`copy("llama", change)`: a tiny checkpoint with `change` applied to its tensors by name."""

    def make(architecture="llama", change=dict, config=None, name="copy", **changes):
        folder = tmp_path / name
        shutil.copytree(tiny(architecture, **changes), folder)
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **(config or {})}))
        return folder

    return make


def prefixed(before, after=""):
    return lambda tensors: {
        after + key.removeprefix(before) if key.startswith(before) else key: value
        for key, value in tensors.items()
    }


OTHER_NAMES = {
    "gpt2": ("gpt2", prefixed("transformer.")),  # as on the hub
    "gpt_neox": ("gpt_neox", prefixed("lm_head.", "embed_out.")),
    "mixtral": ("mixtral", dict),
    "compiled": ("llama", prefixed("", "_orig_mod.")),
    "data parallel": ("llama", prefixed("", "module.")),
    "wrapped within": (
        "llama",
        lambda tensors: {key.replace("layers.0.", "layers.0._orig_mod."): v
                         for key, v in tensors.items()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_NAMES)
def test_a_weight_has_one_name_on_disk_and_live(case, copy, tiny):
    architecture, change = OTHER_NAMES[case]
    on_disk = open_weights(copy(architecture, change))
    model = load_checkpoint(tiny(architecture), torch.float32)
    live = open_weights(model)
    assert set(on_disk) == set(live)
    assert all(torch.equal(on_disk[name], live[name]) for name in live)
    assert on_disk.fingerprint == live.fingerprint == open_weights(tiny(architecture)).fingerprint
    assert on_disk.transposed == live.transposed
    if architecture == "gpt2":
        assert "transformer.h.1.attn.c_attn.weight" in on_disk.transposed
    if architecture != "mixtral":  # whose experts are one tensor when loaded
        assert set(live) <= model.state_dict().keys()


@pytest.mark.parametrize("how", ["once", "twice", "head alone", "apart"])
def test_a_tied_head_counts_as_transformers_counts_it(how, copy):
    def change(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        if how in ("twice", "apart"):
            tensors["lm_head.weight"] = embedding.clone() + (how == "apart")
        if how == "head alone":
            tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        return tensors

    folder = copy("llama", change, tie_word_embeddings=True)
    weights = open_weights(folder)
    model = load_checkpoint(folder, torch.float32)
    assert ("lm_head.weight" in weights) is (how == "apart")
    assert torch.equal(weights["lm_head.weight"], model.lm_head.weight)
    assert torch.equal(weights["model.embed_tokens.weight"], model.model.embed_tokens.weight)
    assert weights.fingerprint == open_weights(model).fingerprint


def test_what_transformers_does_not_load_is_no_weight(copy, tiny):
    def older(tensors):
        at = "gpt_neox.layers.0.attention"
        extra = {f"{at}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
                 f"{at}.rotary_emb.inv_freq": torch.rand(4)}  # fmt: skip
        return tensors | extra

    weights = open_weights(copy("gpt_neox", older))
    assert len(weights.beside) == 2
    assert weights.fingerprint == open_weights(tiny("gpt_neox")).fingerprint


def test_the_single_file_counts_before_an_index(copy, tiny):
    folder = copy()
    other = load_file(tiny(seed=1) / "model.safetensors")
    save_file(other, folder / "old.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "old.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    assert open_weights(folder).fingerprint == open_weights(tiny()).fingerprint
    (folder / "model.safetensors").unlink()
    assert open_weights(folder).fingerprint == open_weights(tiny(seed=1)).fingerprint
    index["weight_map"]["model.more.weight"] = "old.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(AlignvecError, match=r"old.safetensors lacks model.more.weight"):
        open_weights(folder)
    (folder / INDEX).unlink()
    with pytest.raises(AlignvecError, match="transformers would not load it"):
        open_weights(folder)


def test_the_file_that_the_config_names_counts(copy, tiny):
    folder = copy(config={"transformers_weights": "mine.safetensors"})
    shutil.copy(tiny(seed=1) / "model.safetensors", folder / "mine.safetensors")
    assert open_weights(folder).fingerprint == open_weights(tiny(seed=1)).fingerprint


def test_a_weight_that_is_in_no_file_is_named(copy):
    folder = copy(change=lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"})
    with pytest.raises(AlignvecError, match=r"is incomplete: model.norm.weight is in none"):
        open_weights(folder)


def test_experts_in_one_tensor_are_told_as_such(tiny, tmp_path):
    model = load_checkpoint(tiny("mixtral"), torch.float32)
    model.save_pretrained(tmp_path, save_original_format=False)
    with pytest.raises(AlignvecError, match=r"mlp.experts.\w+, experts in one tensor as they are"):
        open_weights(tmp_path)


def test_a_model_without_a_head_is_whole(tiny, tmp_path):
    model = load_checkpoint(tiny(), torch.float32).model
    model.save_pretrained(tmp_path)
    assert set(open_weights(tmp_path)) == set(dict(model.named_parameters()))


def quantised(tensors):
    """Linear weights as 8-bit floats with a scale beside, blocks of 16."""
    found = {}
    for key, value in tensors.items():
        if "proj" in key:
            blocks = value.reshape(value.shape[0] // 16, 16, value.shape[1] // 16, 16)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = blocks / scale[:, None, :, None]
            found[f"{key}_scale_inv"] = scale
            value = codes.reshape(value.shape).to(torch.float8_e4m3fn)
        found[key] = value
    return found


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_fp8_is_undone_once_as_transformers_undoes_it(copy, tiny, cache):
    base = copy("llama", quantised, {"quantization_config": FP8})
    plain = open_weights(tiny())
    weights = open_weights(base)
    assert set(weights) == set(plain)
    for name in plain:
        off = (weights[name].float() - plain[name]).abs().max()
        assert off <= 0.05 * plain[name].abs().max()
    assert find_base(str(base)).is_relative_to(cache)
    assert not json.loads((find_base(str(base)) / "config.json").read_text()).get(
        "quantization_config"
    )


def test_fp8_under_names_that_transformers_passes_over_is_refused(copy, cache):
    def named(tensors):
        return {k.replace("scale_inv", "scale"): v for k, v in quantised(tensors).items()}

    with pytest.raises(AlignvecError, match=r"quantised \(fp8\).*weight_scale is not read"):
        open_weights(copy("llama", named, {"quantization_config": FP8}))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "new"])
def test_what_cannot_be_undone_is_refused_by_its_name(method, copy, cache):
    told = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    folder = copy(change=quantised, config={"quantization_config": told})
    with pytest.raises(AlignvecError, match=rf"is quantised \({method}\)"):
        open_weights(folder)
    assert not list(cache.glob("plain/*"))


@pytest.mark.parametrize("told", [3, "fp8", ["fp8"], {"quant_method": ["fp8"]}, {"bits": 4}])
def test_a_quantisation_config_that_says_nothing_is_refused(told, copy, cache):
    with pytest.raises(AlignvecError, match=r"is quantised|cannot be read"):
        open_weights(copy(change=quantised, config={"quantization_config": told}))


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
def test_codes_without_a_config_are_refused(scale, copy):
    def named(tensors):
        return {k.replace("weight_scale_inv", scale): v for k, v in quantised(tensors).items()}

    with pytest.raises(AlignvecError, match=r"is quantised, but config.json has no"):
        open_weights(copy(change=named))


def test_a_code_that_lost_its_scale_is_named(copy, cache):
    lost = "model.layers.0.self_attn.q_proj.weight"

    def without(tensors):
        return {k: v for k, v in quantised(tensors).items() if k != f"{lost}_scale_inv"}

    with pytest.raises(AlignvecError, match=rf"\(fp8\).*{lost} is without its scale"):
        open_weights(copy("llama", without, {"quantization_config": FP8}))


def test_a_last_block_that_is_smaller_is_refused(copy, cache):
    """transformers would cut 48 rows with scales of 2 blocks of 32 into 2 of 24."""

    def coarse(tensors):
        found = quantised(tensors)
        for key in [key for key in found if key.endswith("up_proj.weight_scale_inv")]:
            found[key] = torch.rand(2, 1)
        return found

    told = {**FP8, "weight_block_size": [32, 32]}
    with pytest.raises(AlignvecError, match=r"up_proj.weight of 48 is no whole number of blocks"):
        open_weights(copy("llama", coarse, {"quantization_config": told}))


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_a_quantisation_that_the_text_part_tells(method, multimodal, tmp_path, cache):
    base = multimodal("gemma3")
    plain = open_weights(base)
    folder = shutil.copytree(base, tmp_path / "copy")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    text = quantised({key: value for key, value in tensors.items() if "language" in key})
    save_file({**tensors, **text}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"] = {**FP8, "quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    if method == "gptq":
        with pytest.raises(AlignvecError, match=r"is quantised \(gptq\)"):
            open_weights(folder)
        return
    weights = open_weights(folder)
    assert set(weights) == set(plain)
    for name in plain:
        off = (weights[name].float() - plain[name]).abs().max()
        assert off <= 0.05 * plain[name].abs().max()
    assert "quantization_config" not in (find_base(str(folder)) / "config.json").read_text()


def test_the_layout_is_remembered_and_made_anew_when_damaged(copy, cache):
    folder = copy()
    fingerprint = open_weights(folder).fingerprint
    (file,) = cache.glob("layouts/*.json")
    for damage in ("{", '{"names": 1}'):
        file.write_text(damage)
        assert open_weights(folder).fingerprint == fingerprint
        assert json.loads(file.read_text())["names"]


def test_a_vector_and_an_adapter_are_no_models(tmp_path, tiny):
    (tmp_path / "alignment_vector.json").write_text("{}")
    with pytest.raises(AlignvecError, match="is an alignment vector, not a model"):
        find_base(str(tmp_path))
    (tmp_path / "alignment_vector.json").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(AlignvecError, match=r"is a LoRA adapter, .* \('some/base'\)"):
        find_base(str(tmp_path))
    shutil.copytree(tiny(), tmp_path, dirs_exist_ok=True)
    assert find_base(str(tmp_path)) == tmp_path  # a stray config beside a model
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AlignvecError, match=r"holds a model .* and an adapter"):
        find_base(str(tmp_path))
