"""Truncated SVD, adapters out, and what `inspect` says."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.base.identity import BaseId
from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress, factor
from alignvec.vector.delta import Dense, LowRank
from alignvec.vector.export import export
from alignvec.vector.fold import fold
from alignvec.vector.inspect import compare, inspect

BASE = BaseId("a base", "f00d")


@settings(max_examples=50, deadline=None)
@given(
    out=st.integers(1, 40),
    size=st.integers(1, 40),
    rank=st.integers(1, 12),
    seed=st.integers(0, 1000),
    transposed=st.booleans(),
)
def test_no_other_matrix_of_that_rank_is_nearer(out, size, rank, seed, transposed):
    """Eckart and Young: the error is the singular values left out."""
    matrix = torch.randn(out, size, generator=torch.Generator().manual_seed(seed))
    sigma = torch.linalg.svdvals(matrix)
    found = factor(Dense(matrix), rank, None, transposed)
    assert found.shape == matrix.shape
    assert found.rank == min(rank, *matrix.shape)
    error = (found.dense() - matrix).square().sum()
    torch.testing.assert_close(error, sigma[rank:].square().sum(), atol=1e-3, rtol=2e-2)
    kept = 1 - float(error / matrix.square().sum())
    assert found.energy == pytest.approx(kept, abs=1e-3)
    assert (found * -0.5).energy == found.energy
    twice = factor(factor(Dense(matrix), rank + 3, None, transposed), rank, None)
    assert twice.energy == pytest.approx(kept, abs=2e-3)  # still of the whole
    again = factor(found, 64, None)  # of a low-rank delta, nothing is lost
    torch.testing.assert_close(again.dense(), found.dense(), atol=1e-4, rtol=1e-4)
    share = factor(Dense(matrix), None, 0.8)
    assert share.energy >= 0.8 - 1e-6
    if share.rank > 1:
        assert factor(Dense(matrix), share.rank - 1, None).energy < 0.8 + 1e-6


def test_what_cannot_be_factored_stays_or_is_dropped(tiny, nudged):
    vector = AlignmentVector.extract(tiny("qwen2"), nudged("qwen2"))
    kept, adapter = compress(vector, rank=4), compress(vector, rank=4, drop_rest=True)
    dense = {name for name, delta in kept.deltas.items() if not isinstance(delta, LowRank)}
    assert kept.deltas.keys() == vector.deltas.keys()
    assert dense == vector.deltas.keys() - adapter.deltas.keys()
    assert "model.embed_tokens.weight" in dense
    assert "model.layers.0.self_attn.q_proj.bias" in dense
    for wrong in ({}, {"rank": 0}, {"energy": 1.5}, {"energy": math.nan}):
        with pytest.raises(AlignvecError, match=r"rank|energy"):
            compress(vector, **wrong)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "phi", "gemma"])
def test_peft_loads_the_export_and_computes_the_same(architecture, tiny, nudged, tmp_path):
    from peft import PeftModel

    from alignvec.knobs.model import KnobModel

    vector = compress(
        AlignmentVector.extract(tiny(architecture), nudged(architecture)), rank=5, drop_rest=True
    )
    vector.save_pretrained(tmp_path / "av")
    export(AlignmentVector.from_pretrained(tmp_path / "av"), "peft", tmp_path / "lora")
    ids = torch.tensor([[5, 6, 7, 8]])
    peft = PeftModel.from_pretrained(
        load_checkpoint(tiny(architecture), torch.float32), tmp_path / "lora"
    )
    model = KnobModel.from_pretrained(tiny(architecture), {"k": vector}, dtype="float32")
    with torch.no_grad():
        wanted = model.set(k=1).model(ids).logits
        torch.testing.assert_close(peft(ids).logits, wanted, atol=2e-3, rtol=1e-3)


def test_a_sum_knows_which_layers_are_stored_the_other_way(tiny, nudged, tmp_path):
    from peft import PeftModel

    base = tiny("gpt2")
    vector = AlignmentVector.extract(base, nudged("gpt2"))
    first, second = (
        replace(vector, deltas={name: vector.deltas[name]}, transposed=frozenset({name}))
        for name in ("transformer.h.0.attn.c_proj.weight", "transformer.h.1.mlp.c_fc.weight")
    )
    both = compress(first + second, rank=4)
    peft = PeftModel.from_pretrained(
        load_checkpoint(base, torch.float32), export(both, "peft", tmp_path / "lora")
    )
    fold(base, [(both, 1.0)], tmp_path / "folded")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = load_checkpoint(tmp_path / "folded", torch.float32)(ids).logits
        torch.testing.assert_close(peft(ids).logits, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "phi", "gemma"])
def test_gguf_adapters_read_back(architecture, tiny, nudged, tmp_path):
    import gguf

    base = tiny(architecture)
    full = AlignmentVector.extract(base, nudged(architecture))
    vector = compress(full, energy=0.5, drop_rest=True)  # ranks differ
    if architecture == "gemma":  # llama.cpp ties its head always
        with pytest.raises(AlignvecError, match=r"no name for lm_head.weight in gemma"):
            export(vector, "gguf", tmp_path / "a.gguf", str(base))
        return
    export(vector, "gguf", tmp_path / "a.gguf", str(base))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("adapter.type").contents() == "lora"
    alpha = reader.get_field("adapter.lora.alpha").contents()
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(tensors) == 2 * len(vector.deltas)
    products = {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[name.replace("lora_a", "lora_b")]
            # As llama.cpp does: alpha over the tensor's own rank.
            products[name.removesuffix(".lora_a")] = (alpha / b.shape[1]) * b @ a
    gate = {"gpt2": "blk.1.ffn_up.weight", "phi": "blk.1.ffn_up.weight"}.get(
        architecture, "blk.1.ffn_gate.weight"
    )
    ours = {
        "gpt2": "transformer.h.1.mlp.c_fc.weight",
        "phi": "model.layers.1.mlp.fc1.weight",
    }.get(architecture, "model.layers.1.mlp.gate_proj.weight")
    delta = vector.deltas[ours].dense()
    torch.testing.assert_close(products[gate], delta.T if architecture == "gpt2" else delta)
    if architecture == "llama":  # 4 heads of 8 rows: rows 0 and 4 of a head are neighbours
        query = vector.deltas["model.layers.0.self_attn.q_proj.weight"].dense()
        order = [
            8 * head + row for head in range(4) for pair in range(4) for row in (pair, pair + 4)
        ]
        torch.testing.assert_close(products["blk.0.attn_q.weight"], query[order])
    with pytest.raises(AlignvecError, match="is dense, and an adapter holds only"):
        export(full, "gguf", tmp_path / "b.gguf", str(base))
    with pytest.raises(AlignvecError, match="unknown format"):
        export(vector, "onnx", tmp_path / "b.gguf", str(base))
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["a.gguf"]


def test_inspect_counts_and_compares(tiny, nudged):
    vector = AlignmentVector.extract(tiny("mixtral"), nudged("mixtral"))
    found = inspect(vector)
    assert found["norm"] == pytest.approx(vector.norm(), rel=1e-6)
    total = sum(norm**2 for layers in found["norms"].values() for norm in layers.values())
    assert total == pytest.approx(found["norm"] ** 2, rel=1e-6)
    assert set(found["norms"]["self_attn.q_proj"]) == {"0", "1"}
    relation = compare({"a": vector, "b": -2.0 * vector, "c": vector + vector})
    assert relation["cosine"]["a"]["b"] == pytest.approx(-1, abs=1e-6)
    assert relation["sign_conflict"]["a"]["b"] == 1
    assert relation["sign_conflict"]["a"]["c"] == 0
