"""Special tokens: a chat template writes its own, a plain prompt gets the model's."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from alignvec.base.load import load_base
from alignvec.base.prompts import conversations, last_question, prompt_tokens
from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.knobs.model import KnobModel


@pytest.fixture
def base(tiny):
    """Whose tokenizer puts <s> (1) before every text, as Llama's does."""
    base = load_base(str(tiny()), "float32", "cpu")
    base.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert base.tokenizer("a")["input_ids"][0] == 1
    return base


def test_a_template_writes_its_own_special_tokens(base):
    assert 1 not in prompt_tokens(base.tokenizer, "why?")
    base.tokenizer.chat_template = None
    tokens = prompt_tokens(base.tokenizer, "why?")
    assert tokens[0] == 1
    assert tokens.count(1) == 1


def test_a_response_has_no_special_tokens(base):
    record = Record(id="a", query="why?", levels={"low": "so", "high": "because"})
    (row,) = response_rows(base.tokenizer, [record], ["low", "high"])
    assert [len(response) for response in row.responses] == [2, 7]
    assert all(1 not in response for response in row.responses)


@pytest.mark.parametrize("template", [True, False])
def test_an_answer_is_to_the_tokens_of_the_prompt(base, template):
    if not template:
        base.tokenizer.chat_template = None
    ids = torch.tensor([prompt_tokens(base.tokenizer, "why me?")])
    with torch.no_grad():
        out = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    expected = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    answers = KnobModel(base.model, base.tokenizer, {}).generate("why me?", max_new_tokens=8)
    assert answers == [expected]


def test_conversations_of_every_form_are_lists_of_messages():
    turn = {"role": "user", "content": "a?"}
    assert conversations("a?") == conversations(["a?"]) == conversations([turn]) == [[turn]]
    assert conversations(["a?", [turn, turn]]) == [[turn], [turn, turn]]
    assert conversations([]) == []
    with pytest.raises(AlignvecError, match="role and content"):
        conversations([{"role": "user"}])
    said = [turn, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"},
            {"role": "assistant", "content": "d"}]  # fmt: skip
    assert last_question(said) == "c?"
    assert last_question([{"role": "system", "content": "x"}]) == ""
