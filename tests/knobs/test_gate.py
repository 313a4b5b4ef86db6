"""Gate: each row of a batch under its own setting, as if it were folded and alone."""

import threading

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignvec.base.identity import base_id
from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.base.logprobs import Row, logprobs
from alignvec.errors import AlignvecError
from alignvec.knobs.gate import Gate
from alignvec.knobs.model import KnobModel
from alignvec.knobs.schedule import parse_schedule
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import LowRank
from conftest import ARCHITECTURES, MOE

SETTINGS = [{}, {"full": 1.0}, {"full": 0.5, "low": -0.7}, {"low": 2.0}]


@pytest.fixture(scope="module")
def vectors(tiny, nudged):
    """Of an architecture: a full vector, and a low-rank one with dense norms and biases."""

    def get(architecture="llama", **changes):
        full = AlignmentVector.extract(
            tiny(architecture, **changes), nudged(architecture, **changes)
        )
        return {"full": full, "low": compress(full, rank=3)}

    return get


def folded_logits(base, vectors, ids, **inputs):
    """Logits of each row alone, with its setting in the weights."""
    model = KnobModel.from_pretrained(base, vectors, dtype="float32", mode="fold")
    found = []
    for row, setting in enumerate(SETTINGS):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        with torch.no_grad():
            found.append(model.set(setting).model(ids[row : row + 1], **one).logits)
    return torch.cat(found)


def gated_logits(base, vectors, ids, **inputs):
    model = load_checkpoint(base, torch.float32)
    gate = Gate(model, vectors)
    with torch.no_grad(), gate.rows(gate.tensor(SETTINGS)):
        return model(ids, **inputs).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "phi3", "opt", "gemma3_text"])
def test_a_gated_row_is_that_row_folded(architecture, tied, tiny, vectors):
    base = tiny(architecture, tie_word_embeddings=tied)
    knobs = vectors(architecture, tie_word_embeddings=tied)
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    gated = gated_logits(base, knobs, ids)
    torch.testing.assert_close(gated, folded_logits(base, knobs, ids), atol=2e-4, rtol=2e-4)
    plain = load_checkpoint(base, torch.float32)(ids).logits
    assert torch.equal(gated[0], plain[0])  # no strength: the base, bit for bit
    assert (gated[1:] - plain[1:]).abs().amax((1, 2)).min() > 0.1


def test_padded_rows_keep_their_strengths(tiny, vectors):
    knobs = vectors()
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1, 6)):
        mask[row, :padding] = 0
    gated = gated_logits(tiny(), knobs, ids, attention_mask=mask)[mask.bool()]
    folded = folded_logits(tiny(), knobs, ids, attention_mask=mask)[mask.bool()]
    torch.testing.assert_close(gated, folded, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", MOE)
def test_experts_are_refused_by_name_and_attention_is_gated(architecture, tiny):
    base = load_checkpoint(tiny(architecture), torch.float32)
    moved = load_checkpoint(tiny(architecture), torch.float32)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if "self_attn" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    attention = AlignmentVector.extract(base, moved)
    ids = torch.randint(3, 90, (2, 9))
    gate = Gate(base, {"a": attention})
    with torch.no_grad(), gate.rows(torch.tensor([[0.0], [1.0]])):
        gated = base(ids).logits
    torch.testing.assert_close(gated[1:], moved(ids[1:]).logits, atol=2e-4, rtol=2e-4)
    with torch.no_grad():
        moved.model.layers[0].mlp.gate.weight.add_(1)
        moved.model.layers[1].mlp.experts.down_proj.add_(1)
    for tensor in ("layers.0.mlp.gate.weight", "layers.1.mlp.experts.down_proj"):
        whole = AlignmentVector.extract(base, moved)
        layer = tensor.rpartition(".")[0]  # experts are apart in a vector and one when loaded
        only = {name: delta for name, delta in whole.deltas.items() if layer in name}
        with pytest.raises(AlignvecError, match=rf"{tensor} cannot be gated"):
            Gate(base, {"a": AlignmentVector(only, whole.base)})


def test_a_parameter_that_no_module_of_its_own_uses_is_refused(tiny, nudged):
    base = load_checkpoint(tiny("mamba"), torch.float32)
    name = "backbone.layers.0.mixer.A_log"
    delta = AlignmentVector.extract(base, str(nudged("mamba"))).deltas[name]
    with pytest.raises(AlignvecError, match=rf"{name} cannot be gated"):
        Gate(base, {"a": AlignmentVector({name: delta}, base_id(base))})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype, tiny, vectors):
    model = load_checkpoint(tiny(), dtype)
    gate = Gate(model, vectors())
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), gate.rows(gate.tensor(SETTINGS)):
        gated = model(ids).logits
    assert gated.dtype == dtype
    exact = folded_logits(tiny(), vectors(), ids)
    size = exact.abs().max().item()
    tolerance = {torch.bfloat16: 0.06, torch.float16: 0.008, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(gated.float(), exact, atol=tolerance * size, rtol=0)


@pytest.fixture(scope="module")
def models(tiny, vectors):
    """The same knobs in every mode, on copies of one model."""
    tokenizer = load_tokenizer(tiny())
    return {
        mode: KnobModel(load_checkpoint(tiny(), torch.float32), tokenizer, vectors(), mode=mode)
        for mode in ("fold", "gate", "auto")
    }


strength = st.sampled_from([0.0, 1.0, -1.0, 2.5, 0.3])
row = st.tuples(
    st.text("abc ?", min_size=1, max_size=12),
    st.fixed_dictionaries({"full": strength, "low": strength}),
)


@settings(max_examples=40, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    rows=st.lists(row, min_size=1, max_size=5),
    cache=st.sampled_from([None, "static"]),
    beams=st.sampled_from([(1, 1), (2, 1), (3, 2)]),
    before=strength,
)
def test_a_mixed_batch_answers_as_each_row_alone(rows, cache, beams, before, models):
    options = {
        "max_new_tokens": 6,
        "cache_implementation": cache,
        "num_beams": beams[0],
        "num_return_sequences": beams[1],
        "disable_compile": True,
    }
    questions, knobs = [question for question, _ in rows], [knob for _, knob in rows]
    alone = [
        answer
        for question, knob in rows
        for answer in models["fold"].generate([question], [knob], **options)
    ]
    for mode in ("gate", "auto"):
        model = models[mode].set(full=before)
        assert model.generate(questions, knobs, **options) == alone
        assert model.setting == {"full": before, "low": 0.0}


def test_sampled_sequences_stay_with_their_row(models):
    """A strong knob that forces one token: every sample of that row is that token."""
    model = models["gate"]
    head = model.model.lm_head.weight
    hidden = torch.randn(32, generator=torch.Generator().manual_seed(0))
    letter = model.tokenizer.convert_tokens_to_ids("x")
    b = torch.zeros(len(head), 1)
    b[letter] = 1
    vector = AlignmentVector({"lm_head.weight": LowRank(hidden[None], b)}, base_id(model.model))
    forced = KnobModel(model.model, model.tokenizer, {"x": vector}, mode="gate")
    answers = forced.generate(
        ["a", "b"], [{"x": 0}, {"x": 1e4}], max_new_tokens=1, do_sample=True,
        num_return_sequences=8, temperature=5.0, top_k=0,
    )  # fmt: skip
    assert len(answers) == 16
    # The sign of hidden . state decides between always and never; both ends show a row's own.
    assert set(answers[8:]) == {"x"} or "x" not in answers[8:]
    assert len(set(answers[:8])) > 1
    forced.detach()


def test_turning_is_seen_by_the_next_forward_pass_and_by_no_weight(tiny, vectors):
    model = KnobModel.from_pretrained(tiny(), vectors(), dtype="float32", mode="gate")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    ids = torch.arange(3, 12)[None]
    plain = model.model(ids).logits
    turned = model.set(low=1.0, full=-1.0).model(ids).logits
    assert not torch.allclose(plain, turned, atol=0.1)
    with model.at({"low": 3.0}):
        assert model.setting == {"full": 0.0, "low": 3.0}
    assert torch.equal(model.model(ids).logits, turned)
    assert torch.equal(model.set().model(ids).logits, plain)
    base = model.set(low=1.0).detach()
    assert torch.equal(base(ids).logits, plain)
    assert not any(module._forward_hooks for module in base.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_gradients_flow_to_every_strength(tiny, vectors):
    model = load_checkpoint(tiny(), torch.float64)
    gate = Gate(model, vectors())
    rows = [Row([1, 5, 9], [[7, 8, 30]]), Row([1, 5], [[40, 8]]), Row([2, 6, 7, 3], [[50]])]

    def loss(strengths):
        with gate.rows(strengths):
            return torch.stack([values[0].sum() for values in logprobs(model, rows)])

    strengths = torch.tensor([[0.5, -0.2], [0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    found = torch.autograd.functional.jacobian(loss, strengths)  # [rows, rows, knobs]
    step = 1e-3  # logprobs are float32
    for knob in range(2):
        moved = torch.zeros_like(strengths)
        moved[:, knob] = step
        with torch.no_grad():
            slope = (loss(strengths + moved) - loss(strengths - moved)) / (2 * step)
        own = found[:, :, knob]
        torch.testing.assert_close(own.diagonal().float(), slope, atol=0.02, rtol=0.01)
        assert torch.equal(own, own.diagonal().diag())  # nothing of another row


def test_a_compiled_model_turns_without_compiling_again(tiny, vectors):
    model = load_checkpoint(tiny(), torch.float32)
    gate = Gate(model, vectors())
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count)
    with torch.no_grad():
        for turn in range(3):
            gate.set(torch.randn(4, 2, generator=torch.Generator().manual_seed(turn)))
            torch.testing.assert_close(
                compiled(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4
            )
    assert len(graphs) == 1


def test_a_schedule_turns_at_every_token(models):
    model, question = models["gate"], "why so"
    ids = model.tokenizer("<user>why so</s><assistant>", return_tensors="pt").input_ids
    ids = model.tokenizer(
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        ),
        add_special_tokens=False, return_tensors="pt",
    ).input_ids  # fmt: skip
    factors = [3.0, 2.0, 1.0, 0.0, 0.0, 0.0]
    written, cache, last = [], transformers.DynamicCache(), ids
    with torch.no_grad():
        for factor in factors:
            with model.gate.rows(torch.tensor([[factor, 0.5 * factor]])):
                logits = model.model(last, past_key_values=cache, use_cache=True).logits
            last = logits[:, -1:].argmax(-1)
            written.append(int(last))
    wanted = model.tokenizer.decode(written, skip_special_tokens=True).strip()
    for mode in ("gate", "auto"):
        found = models[mode].generate(
            question, [{"full": 1.0, "low": 0.5}], len(factors), schedule={3: 0.0, 0: 3.0}
        )
        assert found[0].startswith(wanted[: len(found[0])])
    constant = model.generate([question], [{"full": 1.0, "low": 0.5}], 6, schedule={5: 2.0})
    assert constant == model.generate([question], [{"full": 2.0, "low": 1.0}], 6)
    for wrong in ({}, {-1: 1.0}, {0: float("nan")}, {"a": 1.0}):
        with pytest.raises(AlignvecError, match="schedule"):
            model.generate(question, schedule=wrong)
    with pytest.raises(AlignvecError, match="not in mode 'fold'"):
        models["fold"].generate(question, schedule={0: 1.0})
    assert parse_schedule("32=0.2,0=1") == {0: 1.0, 32: 0.2}
    for text in ("a=1", "0", "-1=2", "1.5=2"):
        with pytest.raises(AlignvecError, match="write"):
            parse_schedule(text)


def test_answers_stream_and_threads_take_turns(models):
    model = models["gate"]
    expected = {
        by: model.generate("how", [{"full": by}], max_new_tokens=8)[0] for by in (-1.0, 0.0, 2.0)
    }
    assert len(set(expected.values())) == 3
    found = {}

    def stream(by):
        streamer = transformers.TextIteratorStreamer(
            model.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        options = {"max_new_tokens": 8, "streamer": streamer}
        thread = threading.Thread(
            target=model.generate, args=("how", [{"full": by}]), kwargs=options
        )
        thread.start()
        found[by] = "".join(streamer).strip()
        thread.join()

    readers = [threading.Thread(target=stream, args=(by,)) for by in expected]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == expected


def test_what_does_not_fit_is_refused(models, tiny):
    model = models["gate"]
    with (
        pytest.raises(AlignvecError, match="3 settings for a batch of 4"),
        model.gate.rows(torch.ones(3, 2)),
    ):
        model.model(torch.ones(4, 2, dtype=torch.long))
    with pytest.raises(AlignvecError, match="unknown mode 'fast'; one of auto, fold, gate"):
        KnobModel(model.model, model.tokenizer, {}, mode="fast")
    with pytest.raises(AlignvecError, match="unknown knob"):
        model.generate("a", [{"other": 1.0}])
