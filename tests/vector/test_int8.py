"""Vectors whose matrices lie in 8 bits on disk."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.identity import BaseId
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector import delta as delta_module
from alignvec.vector import stream
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import Dense, Lazy, LowRank
from alignvec.vector.fold import fold
from alignvec.vector.inspect import inspect
from conftest import watching

BASE = BaseId("a base", "f00d")
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def about(folder):
    return json.loads((folder / "alignment_vector.json").read_text())


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
    part=st.integers(1, 50),
)
def test_the_error_is_at_most_half_a_step_of_the_row(shape, seed, size, part, tmp_path_factory):
    values = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if values.ndim > 1 and values.numel():
        values[0] = 0
    folder = tmp_path_factory.mktemp("int8") / "av"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_module, "PART", part)
        AlignmentVector({"w": Dense(values)}, BASE).save_pretrained(folder, "int8")
        delta = AlignmentVector.from_pretrained(folder).deltas["w"]
        rows = torch.zeros(shape).reshape(shape or (1,))
        for start, stop in delta_module.parts(shape):
            delta.part(start, stop).add_to(rows[start:stop], 1.0)
    found = delta.dense()
    assert torch.equal(found, rows.reshape(shape))
    if values.ndim < 2 or not values.numel():
        assert torch.equal(found, values)
    else:
        step = values.abs().amax(-1, keepdim=True) / 127
        assert bool(((found - values).abs() <= 0.5001 * step).all())


def test_a_quarter_of_the_size_and_a_vector_like_any_other(tiny, nudged, tmp_path):
    full = AlignmentVector.extract(tiny(), nudged())
    sizes = {
        dtype: (full.save_pretrained(tmp_path / dtype, dtype) / "model.safetensors").stat().st_size
        for dtype in ("float32", "int8")
    }
    assert sizes["int8"] < 0.35 * sizes["float32"]  # scales and headers weigh here
    assert (about(tmp_path / "int8")["format_version"], about(tmp_path / "int8")["dtype"]) == (
        2,
        "int8",
    )
    assert about(tmp_path / "float32")["format_version"] == 1
    vector = AlignmentVector.from_pretrained(tmp_path / "int8")
    assert isinstance(vector.deltas[UP], Lazy)
    assert vector.dtype == torch.int8
    assert vector.in_memory().dtype == (vector + full).dtype == torch.float32
    assert torch.equal(vector.deltas[NORM].dense(), full.deltas[NORM].dense())
    assert vector.cosine(full) == pytest.approx(1, abs=1e-4)
    assert vector.norm() == pytest.approx(full.norm(), rel=1e-3)
    assert inspect(vector)["dtype"] == "int8"
    fold(tiny(), [(vector, 0.7)], tmp_path / "folded")
    live = KnobModel.from_pretrained(tiny(), {"k": vector}, dtype="float32").set(k=0.7).model
    expected = CheckpointWeights(tiny())[UP] + 0.7 * vector.deltas[UP].dense()
    for found in (CheckpointWeights(tmp_path / "folded")[UP], live.state_dict()[UP]):
        torch.testing.assert_close(found, expected)
    vector.save_pretrained(tmp_path / "again")  # as it is: int8, and no second loss
    again = AlignmentVector.from_pretrained(tmp_path / "again")
    assert again.dtype == torch.int8
    torch.testing.assert_close(again.deltas[UP].dense(), vector.deltas[UP].dense())


def test_factors_stay_an_adapter(tiny, nudged, tmp_path):
    full = AlignmentVector.extract(tiny(), nudged())
    adapter = compress(full, rank=3, drop_rest=True).save_pretrained(tmp_path / "a", "int8")
    assert (about(adapter)["format_version"], about(adapter)["dtype"]) == (1, "bfloat16")
    mixed = compress(full, rank=3).save_pretrained(tmp_path / "m", "int8")
    assert (about(mixed)["format_version"], about(mixed)["dtype"]) == (2, "int8")
    for folder in (adapter, mixed):
        tensors = load_file(folder / "adapter_model.safetensors").values()
        assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    vector = AlignmentVector.from_pretrained(mixed)
    assert isinstance(vector.deltas[UP], LowRank)
    assert vector.dtype == vector.deltas["model.embed_tokens.weight"].dtype == torch.int8


def test_shards_and_a_restart_give_the_same(tiny, nudged, tmp_path, monkeypatch):
    full = AlignmentVector.extract(tiny(), nudged())
    whole = AlignmentVector.from_pretrained(full.save_pretrained(tmp_path / "whole", "int8"))
    plain = stream.write_tensors

    def in_shards(folder, outputs):
        plain(folder, outputs, max_shard_size="5KB")

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("alignvec.vector.store.write_tensors", in_shards)
    with pytest.raises(KeyboardInterrupt), watching(interrupt):
        full.save_pretrained(tmp_path / "shards", "int8")
    assert list(tmp_path.glob(".shards.*.partial"))
    full.save_pretrained(tmp_path / "shards", "int8")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    again = AlignmentVector.from_pretrained(tmp_path / "shards")
    for name, delta in whole.deltas.items():
        assert torch.equal(again.deltas[name].dense(), delta.dense())


def spoil(change):
    def spoiled(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoiled


def orphan(tensors):
    tensors[UP] = tensors[UP].float()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (spoil(lambda t: t.pop(f"{UP}..scale")), "is int8 and has no scales"),
        (spoil(lambda t: t.update({f"{UP}..scale": torch.ones(3)})), "the scales of .* do not fit"),
        (spoil(lambda t: t.update({f"{UP}..scale": t[f"{UP}..scale"].half()})), "do not fit"),
        (spoil(lambda t: t[f"{UP}..scale"].fill_(float("nan"))), "negative, NaN or infinite"),
        (spoil(lambda t: t[f"{UP}..scale"].fill_(-1)), "negative, NaN or infinite"),
        (spoil(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), "is int8 and has no scales"),
        (spoil(lambda t: t.update({NORM: t[NORM].to(torch.int16)})), "is torch.int16, no delta"),
        (spoil(orphan), r"\.\.scale is in the weights but not in"),
    ],
)
def test_damaged_scales_are_refused_in_one_line(break_it, message, tiny, nudged, tmp_path):
    AlignmentVector.extract(tiny(), nudged()).save_pretrained(tmp_path / "av", "int8")
    break_it(tmp_path / "av")
    with pytest.raises(AlignvecError, match=message) as caught:
        AlignmentVector.from_pretrained(tmp_path / "av")
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_is_not_written(tmp_path):
    for wrong in ("nan", "inf"):
        values = torch.ones(3, 4)
        values[1, 2] = float(wrong)
        vector = AlignmentVector({"w": Dense(values)}, BASE)
        with pytest.raises(AlignvecError, match="holds NaN or infinity"):
            vector.save_pretrained(tmp_path / "av", "int8")
    assert not list(tmp_path.iterdir())
