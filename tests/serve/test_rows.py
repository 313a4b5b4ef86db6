"""Rows that join and leave between steps have the numbers that each has alone."""

import pytest
import torch

from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.serve.rows import Joinable
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from conftest import ARCHITECTURES, MOE

SETTINGS = [{}, {"low": 1.0}, {"low": -0.7, "full": 0.5}, {"full": 2.0}]
LENGTHS = [3, 17, 9, 1]


@pytest.fixture(scope="module")
def knobs(tiny, nudged):
    """A model in float32 with a full vector and a low-rank one."""

    def get(architecture, **changes):
        base = tiny(architecture, **changes)
        if architecture in MOE:  # the router of the experts cannot be gated: the base alone
            return KnobModel.from_pretrained(base, {}, dtype="float32")
        full = AlignmentVector.extract(base, nudged(architecture, **changes))
        vectors = {"full": full, "low": compress(full, rank=3)}
        return KnobModel.from_pretrained(base, vectors, dtype="float32")

    return get


def alone(model, tokens, setting):
    """[V]: the logits after some tokens, read at once and folded."""
    turned = {knob: strength for knob, strength in setting.items() if knob in model.vectors}
    with torch.no_grad(), model.at(turned):
        return model.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]


def strengths(model, settings):
    return torch.tensor([[one.get(knob, 0.0) for knob in model.vectors] for one in settings])


def check(model):
    """Two rows are read in chunks; a third and a fourth join; the first leaves; all are read on."""
    torch.manual_seed(0)
    written = [torch.randint(5, 90, (length,)).tolist() for length in LENGTHS]
    joinable = Joinable(model.model, model.gate)

    def read(which, chunk):
        length = max(len(written[row]) for row in which)
        lists = [[0] * (length - len(written[row])) + written[row] for row in which]
        real = [[False] * (length - len(written[row])) + [True] * len(written[row])
                for row in which]  # fmt: skip
        rows = joinable.rows(strengths(model, [SETTINGS[row] for row in which]))
        for at in range(0, length, chunk):
            part = slice(at, at + chunk)
            logits = rows.read(torch.tensor(lists)[:, part], torch.tensor(real)[:, part])
        return rows, logits

    def step(rows, which):
        new = torch.randint(5, 90, (len(which),)).tolist()
        logits = rows.read(torch.tensor(new)[:, None])
        for row, token in zip(which, new, strict=True):
            written[row].append(token)
        return logits

    def same(logits, which):
        for found, row in zip(logits, which, strict=True):
            wanted = alone(model, written[row], SETTINGS[row])
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-4 * wanted.abs().max())

    model.set({})
    rows, logits = read([0, 1], 5)
    same(logits, [0, 1])
    for _ in range(3):
        same(step(rows, [0, 1]), [0, 1])
    others, logits = read([2, 3], 99)
    same(logits, [2, 3])
    rows.join(others)
    for _ in range(2):
        same(step(rows, [0, 1, 2, 3]), [0, 1, 2, 3])
    rows.select([2, 0, 3])  # the longest leaves, and the padding with it
    assert rows.mask.shape[1] == max(len(written[row]) for row in (0, 2, 3))
    for _ in range(70):  # more than a buffer has room for
        logits = step(rows, [2, 0, 3])
    same(logits, [2, 0, 3])
    assert len(rows) == 3


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "phi3", "opt", "bloom", *MOE])
def test_a_row_is_that_row_alone(architecture, knobs):
    check(knobs(architecture))


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "qwen2"])
def test_a_window_that_slides_is_the_models_own(architecture, knobs):
    extra = {"use_sliding_window": True, "max_window_layers": 1} if architecture == "qwen2" else {}
    model = knobs(architecture, sliding_window=4, **extra)
    assert 4 in {getattr(model.model.config, "sliding_window", None)}
    check(model)


def test_one_that_is_chosen_twice_becomes_two(knobs):
    model = knobs("llama")
    rows = Joinable(model.model, model.gate).rows(strengths(model, SETTINGS[1:2]))
    rows.read(torch.tensor([[7, 8, 9]]))
    rows.select([0, 0])
    logits = rows.read(torch.tensor([[10], [11]]))
    for found, last in zip(logits, (10, 11), strict=True):
        torch.testing.assert_close(found, alone(model, [7, 8, 9, last], SETTINGS[1]))


def test_a_state_that_cannot_be_joined_is_refused(tiny):
    model = KnobModel.from_pretrained(tiny("mamba"), {}, dtype="float32")
    with pytest.raises(AlignvecError, match="cannot be served"):
        Joinable(model.model, model.gate)
