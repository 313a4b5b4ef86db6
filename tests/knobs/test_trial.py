"""The gate on layers that carry state: each row as its own fold, or refused by its tensor."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignvec.base.identity import BaseId
from alignvec.errors import AlignvecError
from alignvec.knobs.gate import Gate
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Dense, LowRank
from conftest import TINY

SMALL = {**TINY, "tie_word_embeddings": False}
BARE = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
SSD = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
SSD = {**SSD, "mamba_chunk_size": 8}
EXPERTS = {"num_experts_per_tok": 2}
FAMILIES = {
    "mamba": BARE,
    "mamba2": {
        **BARE, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8,
    },
    "recurrent_gemma": {
        **SMALL, "head_dim": 8, "lru_width": 32, "attention_window_size": 16,
        "num_hidden_layers": 3,
    },
    "falcon_h1": {**SMALL, **SSD, "head_dim": 8, "mamba_d_ssm": 64},
    "bamba": {**SMALL, **SSD, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **SMALL, **SSD, **EXPERTS, "num_local_experts": 4, "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
    },
    "nemotron_h": {
        **SMALL, **EXPERTS, "num_hidden_layers": 3, "mamba_num_heads": 8, "mamba_head_dim": 8,
        "layers_block_type": ["mamba", "attention", "moe"], "ssm_state_size": 8, "n_groups": 1,
        "chunk_size": 8, "head_dim": 8, "n_routed_experts": 4, "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "jamba": {
        **SMALL, **EXPERTS, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "zamba2": {
        **SMALL, "num_hidden_layers": 3, "num_key_value_heads": 4, "mamba_d_state": 8,
        "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 8,
        "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1],
        "num_mem_blocks": 1,
    },
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "gpt_oss": {**SMALL, **EXPERTS, "head_dim": 8, "num_local_experts": 4},
    "falcon": SMALL,
}  # fmt: skip
STATE = re.compile(r"\b(A_log|D|dt_bias|conv_?1d\.(weight|bias)|recurrent_param|sinks)$")
STRENGTHS = (0.7, -1.0)
IDS = torch.tensor([[1, 40, 55, 62, 71, 33, 90, 48, 77, 65, 52, 84]])
BASE = BaseId("a base", "f00d")


def made(family, dtype=torch.float32):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def deltas(model):
    """A change of each weight: dense, and of every second linear layer as factors."""
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    torch.manual_seed(3)
    changes = {}
    for number, (name, p) in enumerate(model.named_parameters()):
        if name in linear and number % 2:
            changes[name] = LowRank(torch.randn(2, p.shape[1]) / 4, torch.randn(len(p), 2) / 4)
        else:
            changes[name] = Dense(torch.randn(p.shape) / 4)
    return changes


def sorted_out(model, changes):
    """Those that the gate takes, and those that it refuses by name; one of each kind is tried."""
    kinds = {}
    for name in changes:
        kinds.setdefault(re.sub(r"\.\d+\.", ".", name), []).append(name)
    taken, refused = [], []
    for names in kinds.values():
        try:
            Gate(model, {"k": AlignmentVector({names[0]: changes[names[0]]}, BASE)}).detach()
        except AlignvecError as error:
            said, of = str(error), refused
        else:
            said, of = "", taken
        assert not said or said.startswith(f"{names[0]} cannot be gated: ")
        of += names
    return taken, refused


def generated(model, ids):
    """Six tokens over the cache, and the logits of each."""
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6,
        do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_gated_is_folded_token_by_token(family):
    model = made(family)
    changes = deltas(model)
    taken, refused = sorted_out(model, changes)
    assert {name for name in changes if STATE.search(name)} <= set(refused)
    assert any(changes[name].__class__ is LowRank for name in taken)
    gate = Gate(model, {"k": AlignmentVector({name: changes[name] for name in taken}, BASE)})
    with torch.no_grad(), gate.rows(torch.tensor([[by] for by in STRENGTHS])):
        tokens, logits = generated(model, IDS.repeat(2, 1))
        forward = model(IDS.repeat(2, 1)).logits
    gate.detach()
    parameters = dict(model.named_parameters())
    plain = {name: parameters[name].detach().clone() for name in taken}
    for row, by in enumerate(STRENGTHS):
        with torch.no_grad():
            for name, weight in plain.items():
                parameters[name].copy_(weight + by * changes[name].dense())
            wanted = model(IDS).logits[0]
        torch.testing.assert_close(forward[row], wanted, atol=2e-3, rtol=1e-3)
        wanted_tokens, wanted_logits = generated(model, IDS)
        assert tokens[row].tolist() == wanted_tokens[0].tolist()
        torch.testing.assert_close(logits[row], wanted_logits[0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1"])
def test_half_precision_hides_nothing(family):
    """What is refused in float32 is refused in bfloat16, whose rounding is near what is sought."""
    exact, half = made(family), made(family, torch.bfloat16)
    assert sorted_out(half, deltas(half)) == sorted_out(exact, deltas(exact))


def test_a_trial_leaves_the_model_as_it_was():
    model = made("recurrent_gemma")
    before = generated(model, IDS)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.generation_config
    sorted_out(model, deltas(model))
    assert model.generation_config is config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(generated(model, IDS)[1], before[1])
    assert not any(module._forward_hooks for module in model.modules())


class Wrapped(torch.nn.Module):
    """In the place of a linear layer without a bias, and as it is but for `forward`."""

    def __init__(self, dense):
        super().__init__()
        self.weight = dense.weight


class SlightlyBent(Wrapped):
    def forward(self, x):
        return x @ (self.weight + 0.01 * self.weight.square()).T


class Counting(Wrapped):
    """The state is its own: how many tokens there were."""

    def forward(self, x):
        self.tokens = x.shape[1] if x.shape[1] > 1 else self.tokens + 1
        return (x @ self.weight.T) * (1 + 0.01 * self.tokens)


class TokensFirst(Wrapped):
    """Within `Around` it sees the first tokens of all rows, then the second ones."""

    def forward(self, x):
        return x @ self.weight.T


class Around(torch.nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.dense = TokensFirst(dense)

    def forward(self, x):
        rows, tokens, width = x.shape
        turned = self.dense(x.transpose(0, 1).reshape(-1, width))
        return turned.view(tokens, rows, -1).transpose(0, 1)


class Two(torch.nn.Linear):
    """A linear layer by its class, but as the router of PhiMoE it returns more than one tensor."""

    def forward(self, x):
        return super().forward(x), x


class First(torch.nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.dense = Two(dense.in_features, dense.out_features, bias=False)

    def forward(self, x):
        return self.dense(x)[0]


class ReadPast(torch.nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def forward(self, x):
        return self.dense(x) if x.shape[1] > 1 else x @ self.dense.weight.T


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (TokensFirst, None),  # alone, it sees rows first
        (SlightlyBent, "SlightlyBent is not affine in it"),
        (Counting, "Counting keeps state from token to token"),
        (First, "Two is not affine in it"),
        (Around, "TokensFirst does not see rows"),
        (ReadPast, "it is read past FalconLinear"),
    ],
)
def test_a_layer_that_is_not_what_it_seems(module, why):
    model = made("falcon")
    block = model.transformer.h[0].mlp
    block.dense_4h_to_h = module(block.dense_4h_to_h)
    name = next(n for n, _ in model.named_parameters() if "h.0.mlp.dense_4h_to_h" in n)
    delta = Dense(torch.randn(model.get_parameter(name).shape))
    vector = AlignmentVector({name: delta}, BASE)
    if why is None:
        Gate(model, {"k": vector}).detach()
        return
    with pytest.raises(AlignvecError, match=f"^{re.escape(name)} cannot be gated: {why}"):
        Gate(model, {"k": vector})
