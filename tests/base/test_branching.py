"""Which models may read the responses to a prompt in one row, and up to which length."""

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignvec.base.branching import can_branch
from alignvec.base.likelihood import response_scores
from alignvec.base.logprobs import Row
from conftest import TINY

HALVES = [torch.float32, torch.bfloat16, torch.float16]
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 30},
    "phi3": {"sliding_window": 30},
    "gemma3_text": {"sliding_window": 30, "head_dim": 8},
    "cohere2": {"sliding_window": 30},
    "exaone4": {"sliding_window": 30, "sliding_window_pattern": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1},
    "llama4_text": {
        "attention_chunk_size": 30, "head_dim": 8, "num_local_experts": 2,
        "intermediate_size_mlp": 48,
    },
}  # fmt: skip
STATEFUL = {
    "falcon_h1": {
        "head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    },
    "recurrent_gemma": {"head_dim": 8, "lru_width": 32, "num_hidden_layers": 3},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}  # fmt: skip


def made(family, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY, "tie_word_embeddings": False, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_longer_than_a_layer_looks_back_are_not_shared(family):
    model = made(family, **FAMILIES[family])
    assert can_branch(model, 30)
    assert can_branch(model, 31) == (family == "llama")
    prompt = [3 + n for n in range(28)]
    row = Row(prompt, [[40, 41, 42, 43], [50, 51]])
    (scores,) = response_scores(model, [row])
    for response, score in zip(row.responses, scores, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        own = [logprobs[len(prompt) + n - 1, token] for n, token in enumerate(response)]
        assert score == pytest.approx(float(sum(own)) / len(own), abs=1e-4)


def alone(model, row):
    """The scores of a row's responses, each as the only text that the model ever read."""
    scores = []
    for response in row.responses:
        fresh = type(model)(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits = fresh(torch.tensor([[*row.prompt, *response]])).logits[0].log_softmax(-1)
        own = [logits[len(row.prompt) + n - 1, token] for n, token in enumerate(response)]
        scores.append(float(sum(own)) / len(own))
    return scores


SCALED = {
    "longrope": ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [6.0] * 4}}),
    "dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "plain": ("llama", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_positions_that_are_scaled_by_the_longest_row_are_read_among_rows_alike(kind):
    family, changes = SCALED[kind]
    model = made(family, **changes)
    assert can_branch(model, 32)
    assert can_branch(model, 33) == (kind == "plain")
    long = Row(range(5, 33), [[40, 41, 42, 43, 44, 45, 46], [50, 51], [60] * 9])
    rows = [long, Row(range(20, 26), [[7, 8, 9], [10] * 40]), Row(range(30, 50), [[3, 4]])]
    wanted = [alone(model, row) for row in rows]
    for batch in (3072, 1):
        for _ in range(2):  # nothing is remembered of the rows before
            found = response_scores(model, rows, tokens_per_batch=batch)
            for one, other in zip(found, wanted, strict=True):
                assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "recurrent_gemma"])
def test_what_holds_for_a_row_holds_for_its_responses_however_it_is_read(family):
    """Three responses and one are four rows to a model that shares none: not two for each."""
    model = made(family, **STATEFUL.get(family, {}))
    rows = [Row([5, 6, 7], [[8, 9], [10], [11, 12, 13]]), Row([20, 21], [[22, 23]])]
    strengths, seen = torch.tensor([1.0, 2.0]), []

    @contextmanager
    def within(owners):
        def scale(module, args, output):
            seen.append(len(owners))
            return output * strengths[owners][:, None, None]

        handle = model.get_input_embeddings().register_forward_hook(scale)
        yield
        handle.remove()

    together = response_scores(model, rows, within=within)
    assert seen == [2 if family == "llama" else 4]
    for index, row in enumerate(rows):
        for response, score in zip(row.responses, together[index], strict=True):
            one = Row(row.prompt, [response])
            ((own,),) = response_scores(model, [one], within=lambda _, i=index: within([i]))
            assert score == pytest.approx(own, abs=1e-4)


def test_a_mixture_that_returns_the_loss_of_its_routers_is_read_apart():
    model = made("mixtral", num_local_experts=4, num_experts_per_tok=2)
    row = Row(range(5, 12), [[40, 41, 42], [50, 51]])
    plain = response_scores(model, [row])
    model = made("mixtral", num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
    assert response_scores(model, [row])[0] == pytest.approx(plain[0], abs=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_neither_hides_a_leak_nor_looks_like_one(dtype):
    assert can_branch(made("llama", dtype), 500)
    for family, changes in STATEFUL.items():
        assert not can_branch(made(family, dtype, **changes))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_that_counts_positions_itself_is_not_shared(dtype):
    model = made("llama", dtype)
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    assert not can_branch(model)


def test_layers_with_windows_of_their_own_and_a_text_model_within():
    model = made("llama")
    model.config.per_layer_config = {"0": {"sliding_window": None}, "1": {"sliding_window": 40}}
    assert can_branch(model, 40)
    assert not can_branch(model, 41)


def test_it_is_tried_in_any_mode_and_leaves_no_trace():
    model = made("qwen2")
    with torch.inference_mode():
        assert can_branch(model)
    model = made("qwen2").train()
    assert can_branch(model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
