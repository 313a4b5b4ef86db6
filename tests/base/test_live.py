"""A live model counts for what it is, whatever it is wrapped in."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

from alignvec.base.live import open_weights
from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector

IDS = torch.tensor([[5, 6, 7, 8, 30, 41, 9]])


def compiled_within(model):
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled within": compiled_within,
    "data parallel": torch.nn.DataParallel,
    "both": lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.fixture(scope="module")
def two(tiny, nudged):
    return tiny(), nudged()


def load(folder):
    return load_checkpoint(folder, torch.float32)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_wrapped_model_has_the_vector_of_the_bare_one(wrap, two):
    base, aligned = two
    wanted = AlignmentVector.extract(base, aligned).in_memory()
    for pair in (
        (WRAPPED[wrap](load(base)), aligned),
        (base, WRAPPED[wrap](load(aligned))),
        (WRAPPED[wrap](load(base)), WRAPPED[wrap](load(aligned))),
    ):
        found = AlignmentVector.extract(*pair)
        assert found.base.fingerprint == wanted.base.fingerprint
        assert found.fingerprint() == wanted.fingerprint()


@pytest.mark.parametrize("mode", ["fold", "gate"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_knobs_turn_a_model_that_ran_compiled_before(wrap, mode, two):
    """What was compiled without hooks would go on without them."""
    base, aligned = two
    model = WRAPPED[wrap](load(base))
    bare, wanted = logits(model), logits(load(aligned))
    knobs = KnobModel(
        model, load_tokenizer(base), {"k": AlignmentVector.extract(base, aligned)}, mode=mode
    )
    for strength, logits_then in ((1.0, wanted), (0.0, bare), (1.0, wanted)):
        knobs.set(k=strength)
        for run in (model, knobs.model):
            torch.testing.assert_close(logits(run), logits_then, atol=1e-4, rtol=1e-4)
    knobs.detach()
    torch.testing.assert_close(logits(model), bare, atol=1e-5, rtol=1e-5)


CONFIG = LoraConfig(r=2, target_modules=["q_proj"])


def added(model):
    model.add_adapter(CONFIG)
    return model


def merged(model):
    model = get_peft_model(model, CONFIG)
    model.merge_adapter()
    return model


ADAPTED = {
    "peft": lambda model: get_peft_model(model, CONFIG),
    "within": lambda model: get_peft_model(model, CONFIG).get_base_model(),
    "injected": lambda model: inject_adapter_in_model(CONFIG, model),
    "added": added,
    "merged but there": merged,
    "compiled": lambda model: torch.compile(get_peft_model(model, CONFIG), backend="eager"),
}


@pytest.mark.parametrize("how", ADAPTED)
def test_an_adapter_on_a_live_model_is_refused(how, two):
    base, aligned = two
    model = ADAPTED[how](load(base))
    for pair in ((model, aligned), (base, model), (model, model)):
        with pytest.raises(AlignvecError, match=r"has an adapter of PEFT on it; save that"):
            AlignmentVector.extract(*pair)
    with pytest.raises(AlignvecError, match=r"has an adapter of PEFT on it"):
        KnobModel(model, load_tokenizer(base), {})


def test_a_live_model_of_codes_is_refused(two):
    model = load(two[0])
    model.is_quantized, model.quantization_method = True, "QuantizationMethod.GPTQ"
    with pytest.raises(AlignvecError, match=r"live LlamaForCausalLM is quantised \(gptq\)"):
        open_weights(model)
