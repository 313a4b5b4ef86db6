"""Products: layers that read the same tensor share one, and few tokens give what many give."""

import pytest
import torch

from alignvec.base.load import load_checkpoint
from alignvec.knobs.gate import Gate
from alignvec.knobs.products import Factors, Product, Reading
from alignvec.knobs.trial import observed, reading_alike
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import LowRank


@pytest.mark.parametrize(
    ("architecture", "together"),
    [
        ("llama", [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]),
        ("gemma3_text", [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]),
        ("opt", [{"q_proj", "k_proj", "v_proj"}]),
        ("phi3", []),
    ],
)
def test_layers_that_read_the_same_tensor_are_found(architecture, together, tiny):
    model = load_checkpoint(tiny(architecture), torch.float32)
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".1." in name  # of one block
    }
    alike = reading_alike(observed(model, layers))
    found = [{layers[layer].rpartition(".")[2] for layer in group} for group in alike]
    assert [group for group in found if len(group) > 1] == together


def test_a_layer_that_is_called_alone_adds_what_it_adds_beside_others(tiny, nudged):
    model = load_checkpoint(tiny(), torch.float32)
    vector = compress(AlignmentVector.extract(tiny(), nudged()), rank=3)
    parts = ("q_proj", "k_proj", "v_proj")
    attention = {name: delta for name, delta in vector.deltas.items() if "proj" in name}
    gate = Gate(model, {"a": AlignmentVector(attention, vector.base)})
    block = model.model.layers[1].self_attn
    layers = [getattr(block, part) for part in parts]
    x = torch.randn(2, 5, layers[0].in_features)
    strengths = torch.tensor([[0.5], [-1.0]])

    def added(layer, x, by=1.0):
        plain = layer(x)
        with gate.rows(by * strengths):
            return layer(x) - plain

    def of_all(layers, x):
        plain = [layer(x) for layer in layers]
        with gate.rows(strengths):
            return [layer(x) - one for layer, one in zip(layers, plain, strict=True)]

    with torch.no_grad():
        wanted = [
            strengths[:, :, None]
            * (x @ attention[f"model.layers.1.self_attn.{part}.weight"].dense().T)
            for part in parts
        ]
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(of_all(layers, x), wanted, **close)
        torch.testing.assert_close(of_all(layers[::-1], x), wanted[::-1], **close)
        torch.testing.assert_close(added(layers[0], x), wanted[0], **close)  # and no further
        torch.testing.assert_close(added(layers[1], x, 2.0), 2 * wanted[1], **close)
        torch.testing.assert_close(of_all(layers, 3 * x), [3 * one for one in wanted], **close)


def test_few_tokens_give_what_many_give():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 96, bias=False).to(torch.bfloat16)
    low_rank = LowRank(torch.randn(8, 64), torch.randn(96, 8))
    factors = Factors.of(layer, {0: low_rank})
    term = Product(factors, Reading([factors]), 0)
    x = torch.randn(4096, 1, 64, dtype=torch.bfloat16)
    strengths = torch.randn(4096, 1)

    def added(rows):
        output = torch.zeros(len(rows), 1, 96, dtype=torch.bfloat16)
        return term.add(((rows,), {}), output, strengths[: len(rows)]).float()

    assert len(x) * factors.b.numel() > 2**17 > 4 * factors.b.numel()  # both ways are gone
    a, b = low_rank.a.bfloat16().double(), low_rank.b.bfloat16().double()
    exact = (strengths[:, :, None].double() * (x.double() @ a.T @ b.T)).float()
    assert (added(x) - exact).abs().max() < 0.03 * exact.abs().max()
    assert (added(x[:4]) - exact[:4]).abs().max() < 0.01 * exact[:4].abs().max()  # less rounding
