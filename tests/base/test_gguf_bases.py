"""A GGUF file is read as it computes, or refused by what of it is not."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from alignvec.base.source import find_base
from alignvec.errors import AlignvecError

IDS = torch.arange(400)[None] % 90 + 3
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))


def as_gguf(base, file, without=(), extra=None, told=None):
    """A Llama as llama.cpp's converter writes it, with another tokeniser; the file.

    `without`: beginnings of the names that are left out.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = ["<unk>", "<s>", "</s>", "\u2581", *map(chr, range(33, 29 + config.vocab_size))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(place) for place in range(len(words))])
    writer.add_token_types([2, 3, 3] + [1] * (len(words) - 3))
    for key, value in (told or {}).items():
        add = {int: writer.add_uint16, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        heads = {"q_proj.weight": config.num_attention_heads,
                 "k_proj.weight": config.num_key_value_heads}  # fmt: skip
        for ending, count in heads.items():
            if key.endswith(ending):
                value = value.reshape(count, 2, -1, 32).transpose(1, 2).reshape(value.shape)
        if not name.startswith(without):
            writer.add_tensor(name, value.numpy().copy())
    for name, value in (extra or {}).items():
        writer.add_tensor(name, np.array(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(IDS).logits


def divisors(base):
    """By what llama.cpp divides each frequency: plain ones by those of transformers."""
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = model.config.rope_parameters["rope_theta"] ** -(torch.arange(0, 8, 2) / 8)
    return plain / model.model.rotary_emb.inv_freq


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_the_model_that_it_was_made_of(tied, tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=tied)
    file = as_gguf(base, tmp_path / "m.gguf", without=("output.",) if tied else ())
    torch.testing.assert_close(logits(find_base(str(file))), logits(base), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_positions_of_llama_3_are_scaled(factor, tiny, tmp_path):
    positions = {**LLAMA_3, "factor": factor}
    base = tiny("llama", rope_parameters=positions, max_position_embeddings=131072)
    extra = {"rope_freqs.weight": divisors(base)}
    found = find_base(str(as_gguf(base, tmp_path / "m.gguf", extra=extra)))
    torch.testing.assert_close(logits(found), logits(base), atol=1e-5, rtol=1e-4)


def test_positions_that_are_scaled_evenly(tiny, tmp_path):
    positions = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    base = tiny("llama", rope_parameters=positions)
    told = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    found = find_base(str(as_gguf(base, tmp_path / "m.gguf", told=told)))
    torch.testing.assert_close(logits(found), logits(base), atol=1e-5, rtol=1e-4)


REFUSED = {
    "a part": (
        {"without": ("blk.1.",), "told": {"split.no": 0, "split.count": 2}},
        "is part 1 of 2 of a model",
    ),
    "a tensor is gone": ({"without": ("blk.1.ffn_up",)}, r"incomplete: model\.layers\.1\.mlp\.up"),
    "a vocabulary": ({"without": ("blk", "token", "output")}, "is incomplete"),
    "a bias": ({"extra": {"blk.0.attn_q.bias": [3.0] * 32}}, r"not read blk\.0\.attn_q\.bias"),
    "other factors": ({"extra": {"rope_freqs.weight": [1, 1, 4, 9]}}, "otherwise than those of"),
    "fewer factors": ({"extra": {"rope_freqs.weight": [1, 1, 8]}}, "otherwise than those of"),
    "yarn": ({"told": {"llama.rope.scaling.type": "yarn"}}, "scaled by yarn"),
    "an adapter": ({"told": {"general.type": "adapter"}}, "general.type is 'adapter'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_compute_otherwise_is_refused(case, tiny, tmp_path):
    changes, said = REFUSED[case]
    file = as_gguf(tiny("llama"), tmp_path / "m.gguf", **changes)
    with pytest.raises(AlignvecError, match=said):
        find_base(str(file))
    assert not list((tmp_path / "cache").rglob("config.json"))
