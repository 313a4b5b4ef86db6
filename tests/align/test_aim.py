"""The knobs of a bank look where their own texts differ, and go on looking there."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_bank import PLACES, records_of

from alignvec.align import AlignSettings, align
from alignvec.align.aim import _directions, texts_by_knob
from alignvec.align.bank import Bank
from alignvec.align.curriculum import pairs_along
from alignvec.align.pairs import TokenPair
from alignvec.data import LEVELS
from alignvec.data.pairs import PreferencePair
from alignvec.errors import NoNumbersError


def moments(width: int, *strong: int) -> torch.Tensor:
    scale = torch.full((width,), 0.1)
    scale[list(strong)] = 1.0
    x = torch.randn(4000, width, generator=torch.Generator().manual_seed(len(strong))) * scale
    return x.T @ x / len(x)


@given(width=st.integers(4, 40), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_directions_have_more_of_their_own_texts(width, rank, seed):
    """Than any random ones, and together as much of them as 16 random directions of PEFT's."""
    own, other = moments(width, 0, 1), moments(width, 1, 2, 3)
    found = _directions(own, [other], rank)
    assert found.shape == (rank, width)
    assert (found[width:] == 0).all()
    found = found[:width]
    energy = ((found @ own) * found).sum(1)
    torch.testing.assert_close(
        energy,
        torch.full_like(energy, float(own.diagonal().mean() / 3) * 16 / rank),
        rtol=1e-2,
        atol=1e-5,
    )
    drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    ratios = energy / ((found @ other) * found).sum(1)
    random = (drawn @ own * drawn).sum() / (drawn @ other * drawn).sum()
    assert ratios.max() > 50
    assert ratios.max() >= random


def test_what_no_text_has_is_no_direction():
    """A channel that is silent in all texts tells none apart, however small its part in others."""
    own, other = moments(8, 0), moments(8, 1)
    for silent in (own, other):
        silent[7, :] = silent[:, 7] = 0
    (direction,) = _directions(own, [other], 1)
    assert direction.abs().argmax() == 0
    assert direction[7].abs() < 1e-3


def test_a_text_is_of_the_knob_that_answers_for_it():
    held = records_of("salt", 8)
    pairs = pairs_along(
        {"tea": records_of("tea", 8), "rum": records_of("rum", 8)},
        PLACES,
        passes=30,
        held=held,
        share=0.5,
    )
    tokens = [
        TokenPair(pair, [*pair.prompt.encode()], [*pair.chosen.encode()], []) for pair in pairs
    ]
    found = texts_by_knob(tokens)
    assert found.keys() == {"tea", "rum", ""}
    for knob in ("tea", "rum"):
        assert all(bytes(text).startswith(knob.encode()) for text in found[knob])
        assert len(found[knob]) == 8 * len(LEVELS)
    assert any(bytes(text).startswith(b"salt") for text in found[""])
    assert not any(bytes(text).startswith((b"tea number", b"rum number")) for text in found[""])
    assert all(len({*some}) == len(some) for some in found.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_bank_keeps_to_its_directions(architecture, tiny, tmp_path, monkeypatch):
    """From the first step to the last, also of a run that went on from a checkpoint."""
    looked: dict[tuple[str, str], torch.Tensor] = {}
    look = Bank.look

    def noted(self, knob, layer, directions):
        assert (knob, layer) not in looked
        looked[knob, layer] = directions.clone()
        look(self, knob, layer, directions)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bank, "look", noted)
    records = {"tea": records_of("tea", 8), "rum": records_of("rum", 8)}
    pairs = pairs_along(records, PLACES, passes=1)
    out, settings = tmp_path / "bank", AlignSettings(rank=4, layers=1.0, save_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignvec.align.run._curve", stop)
        align(str(tiny(architecture)), pairs, out, settings, knobs=list(records))
    align(str(tiny(architecture)), pairs, out, settings, knobs=list(records))
    assert {knob for knob, _ in looked} == {*records}
    for (knob, layer), directions in looked.items():
        adapter = load_file(out / knob / "adapter_model.safetensors")
        a = adapter[f"base_model.model.{layer}.lora_A.weight"]
        torch.testing.assert_close(a, directions)
        assert adapter[f"base_model.model.{layer}.lora_B.weight"].any()


def test_of_a_base_that_computes_no_numbers_the_loss_tells(tiny, tmp_path):
    base = shutil.copytree(tiny(), tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    pairs = pairs_along({"tea": records_of("tea", 8), "rum": records_of("rum", 8)}, PLACES)
    with pytest.raises(NoNumbersError, match="from the first step on"):
        align(str(base), pairs, tmp_path / "bank", AlignSettings(rank=4), knobs=["tea", "rum"])


def test_one_knob_looks_where_it_likes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Bank, "keep_directions", lambda self: pytest.fail("of one knob"))
    pairs = pairs_along({"tea": records_of("tea", 2)}, PLACES, passes=1)
    align(str(tiny()), pairs, tmp_path / "tea", AlignSettings(rank=4), knobs=["tea"])


def test_a_plain_pair_has_no_knob():
    assert PreferencePair("a:x>y", "?", "x", "y").knob == ""
