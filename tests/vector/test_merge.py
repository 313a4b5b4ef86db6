"""TIES and DARE in parts, against the same on whole tensors."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.errors import AlignvecError
from alignvec.vector import delta as delta_module
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import Dense, LowRank, parts
from alignvec.vector.fold import fold
from alignvec.vector.merge import METHODS, Merge, dropped, trimmed
from conftest import watching


def ties(changes, density, strengths):
    """The paper's three steps, with a sort; of bfloat16s, so that equal means equal."""
    kept = []
    for tau in changes:
        count = max(1, int(density * tau.numel()))
        least = tau.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(tau.abs() >= least, tau, 0))
    return elect(kept, strengths)


def elect(changes, strengths):
    scaled = torch.stack([by * tau for by, tau in zip(strengths, changes, strict=True)])
    agree = scaled.sign() == scaled.double().sum(0).sign()
    return torch.where(agree, scaled, 0).sum(0)


def combined(combine, changes, strengths):
    """In the parts of `fold`, and asked for in any order."""
    turned = combine("w", [(tau, by) for tau, by in zip(changes, strengths, strict=True)])
    shape = tuple(changes[0].shape)
    total = torch.zeros(shape).reshape(shape or (1,))
    for start, stop in reversed(list(parts(shape))):
        for tau, by in turned:
            tau.part(start, stop).add_to(total[start:stop], by)
    return total.reshape(shape)


@st.composite
def cases(draw):
    """Deltas of one shape with strengths, the lower half of their bits zero, and a density."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    count = draw(st.integers(1, 4))
    changes = [torch.randn(shape, generator=generator).bfloat16().float() for _ in range(count)]
    strength = st.floats(-2, 2).map(lambda by: round(by, 2) or 1.0)
    strengths = draw(st.lists(strength, min_size=count, max_size=count))
    return changes, strengths, draw(st.floats(0.01, 1))


@settings(max_examples=200, deadline=None)
@given(case=cases(), part=st.integers(1, 100), seed=st.integers(0, 9))
def test_parts_give_what_the_whole_tensor_gives(case, part, seed):
    changes, strengths, density = case
    deltas = [Dense(tau) for tau in changes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_module, "PART", part)
        found = {how: combined(Merge(how, density, seed), deltas, strengths) for how in METHODS}
    if changes[0].numel():
        torch.testing.assert_close(found["ties"], ties(changes, density, strengths))
    thinned = [
        dropped(tau, density, f"{seed} {index} w").dense() if density < 1 else tau.dense()
        for index, tau in enumerate(deltas)
    ]
    plain = sum(by * tau for by, tau in zip(strengths, thinned, strict=True))
    torch.testing.assert_close(found["dare_linear"], plain)
    torch.testing.assert_close(found["dare_ties"], elect(thinned, strengths))
    for tau, thin in zip(changes, thinned, strict=True):
        assert bool(((thin == 0) | torch.isclose(thin, tau / density)).all())


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_whole_vectors_lose_nothing(case):
    changes, strengths, _ = case
    deltas = [Dense(tau) for tau in changes]
    plain = combined(Merge(), deltas, strengths)
    assert torch.equal(combined(Merge("dare", 1.0), deltas, strengths), plain)
    for how in ("ties", "dare_ties"):
        alone = combined(Merge(how, 1.0), deltas[:1], strengths[:1])
        assert torch.equal(alone, combined(Merge(), deltas[:1], strengths[:1]))


def test_dare_keeps_the_mean_and_drops_for_each_vector_anew():
    ones = [Dense(torch.ones(300, 400))] * 2
    for how in ("dare_linear", "dare_ties"):
        first = combined(Merge(how, 0.2), ones[:1], [1.0])
        assert set(first.unique().tolist()) == {0.0, 5.0}
        assert float(first.mean()) == pytest.approx(1, abs=0.02)
        both = combined(Merge(how, 0.2), ones, [1.0, 1.0])
        assert float((both == 10).float().mean()) == pytest.approx(0.04, abs=0.004)
        assert not torch.equal(first, combined(Merge(how, 0.2, seed=1), ones[:1], [1.0]))


def test_trimming_is_exact_to_bfloat16_and_takes_factors():
    generator = torch.Generator().manual_seed(0)
    whole = LowRank(
        torch.randn(5, 300, generator=generator), torch.randn(200, 5, generator=generator)
    )
    for tau in (whole, LowRank(whole.b.T, whole.a.T, transposed=True)):
        matrix = tau.dense()
        found = trimmed(tau, 0.3).dense()
        kept = found != 0
        assert torch.equal(found[kept], matrix[kept])
        assert float(matrix[~kept].abs().max()) < float(matrix[kept].abs().min())
        assert 0.3 <= float(kept.float().mean()) < 0.304


def test_nan_is_noticed_in_every_way():
    broken = torch.ones(4, 4)
    broken[1, 2] = float("nan")
    for how in METHODS:
        found = combined(Merge(how), [Dense(broken), Dense(torch.ones(4, 4))], [1.0, 1.0])
        assert bool(found[1, 2].isnan())


@pytest.mark.parametrize("how", METHODS)
def test_a_fold_that_is_taken_up_again_gives_the_same_file(how, tiny, nudged, tmp_path):
    full = AlignmentVector.extract(tiny(), nudged())
    turned = [(full, 0.8), (compress(full, rank=3), -0.5)]
    merge = Merge(how, 0.4)
    fold(tiny(), turned, tmp_path / "at-once", merge=merge)

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching(interrupt):
        fold(tiny(), turned, tmp_path / "again", merge=merge)
    assert len(list(tmp_path.glob(".again.*.partial"))) == 1
    seen = []
    with watching(lambda *at: seen.append(at)):
        fold(tiny(), turned, tmp_path / "again", merge=merge)
    assert seen[0][0] > 0
    digests = {
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("at-once", "again")
    }
    assert len(digests) == 1
    name = "model.layers.0.mlp.up_proj.weight"
    changes = [vector.deltas[name] for vector, _ in turned]
    expected = CheckpointWeights(tiny())[name] + combined_for(merge, name, changes, [0.8, -0.5])
    torch.testing.assert_close(CheckpointWeights(tmp_path / "again")[name], expected)


def combined_for(merge, name, changes, strengths):
    turned = merge(name, list(zip(changes, strengths, strict=True)))
    return sum(by * tau.dense() for tau, by in turned)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"method": "slerp"},
            "unknown merge method 'slerp'; one of task_arithmetic, ties",
        ),
        ({"density": 0.0}, "density is a share"),
        ({"density": 1.5}, "density is a share"),
        ({"density": float("nan")}, "density is a share"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(AlignvecError, match=message):
        Merge(**wrong)
