"""What is loaded is a model that continues a text, whatever else it reads."""

import pytest
import torch
import transformers

from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.fold import fold

IDS = torch.tensor([[5, 6, 7, 8, 30, 41, 9]])
CLASSES = {"gemma3": "Gemma3ForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_that_sees_is_turned_live_as_it_is_folded(kind, multimodal, tmp_path):
    base = multimodal(kind)
    load = getattr(transformers, CLASSES[kind]).from_pretrained
    torch.manual_seed(1)
    aligned = load(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in aligned.model.language_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    aligned.save_pretrained(tmp_path / "aligned")
    vector = AlignmentVector.extract(base, tmp_path / "aligned")
    assert vector.deltas.keys() == AlignmentVector.extract(base, aligned).deltas.keys()
    fold(base, [(vector, 1.0)], tmp_path / "folded")
    assert torch.equal(logits(load(tmp_path / "folded", dtype=torch.float32)), logits(aligned))
    for mode in ("fold", "gate"):
        model = KnobModel.from_pretrained(
            str(base), vectors={"k": vector}, mode=mode, dtype="float32"
        )
        model.set(k=1.0)
        torch.testing.assert_close(logits(model.model), logits(aligned), atol=2e-4, rtol=1e-3)


def test_what_continues_no_text_is_refused(tmp_path):
    size = {"vocab_size": 40, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**size)).save_pretrained(tmp_path)
    with pytest.raises(AlignvecError, match=r"its model_type is t5, and that is no language model"):
        load_checkpoint(tmp_path, torch.float32)
