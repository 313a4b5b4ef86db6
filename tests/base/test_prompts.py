"""The tokens before an answer are the same everywhere, and an answer is what may follow them."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from alignvec.align.pairs import token_pairs
from alignvec.base.load import load_base
from alignvec.base.messages import conversations, last_question, text_of
from alignvec.base.prompts import Prompt
from alignvec.data import Record, preference_pairs
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.evaluate.text import reading
from alignvec.knobs.model import KnobModel
from conftest import TEMPLATE


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
    assert 1 not in Prompt(base.tokenizer, "why?").tokens
    base.tokenizer.chat_template = None
    tokens = Prompt(base.tokenizer, "why?").tokens
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
    ids = torch.tensor([Prompt(base.tokenizer, "why me?").tokens])
    with torch.no_grad():
        out = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    expected = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    answers = KnobModel(base.model, base.tokenizer, {}).generate("why me?", max_new_tokens=8)
    assert answers == [expected]


ASKED = [{"role": "user", "content": "What is 1?"}]
SYSTEM = [{"role": "system", "content": "Be kind."}]
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
THOUGHT = "<think>\n\n</think>\n\n"
PLAIN = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
TEMPLATES = {
    "none": None,
    "plain": PLAIN,
    "adds to the prompt": PLAIN.replace("%}<a>{%", "%}<a>So: {%"),
    "thinks": PLAIN.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' %}" + THOUGHT + "{% endif %}{{ m['content'] }}",
    ),
    "spaces": "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} "
    "</s>{% else %}<s>[INST] {{ m['content'] | trim }} [/INST]{% endif %}{% endfor %}",
}


def tokeniser(kind, template):
    """Trained on a few words: `bytes` cuts as GPT-2 does, `spaces` puts one before, as Llama."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<u>", "<a>"]
    bpe = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<unk>"))
    alphabet = [chr(code) for code in range(32, 127)]
    if kind == "bytes":
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        bpe.decoder = decoders.Metaspace()
    text = "What is 1? It is 1. No idea. So: Hi. Hello.\n\n"
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=[*alphabet, "\n"]
    )
    bpe.train_from_iterator([text] * 9, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=special[4:],
    )  # fmt: skip
    found.chat_template = template
    return found


@pytest.mark.parametrize("kind", ["bytes", "spaces"])
@pytest.mark.parametrize("messages", [ASKED, SYSTEM + ASKED, EARLIER + ASKED])
@pytest.mark.parametrize("template", TEMPLATES)
def test_training_and_rates_have_the_tokens_before_an_answer_that_generation_has(
    template, messages, kind
):
    tokenizer = tokeniser(kind, TEMPLATES[template])
    answers = {"chosen": "It is 1.", "rejected": "No idea."}
    record = Record(id="a", query="What is 1?", messages=messages, levels=answers)
    if template == "none":
        asked = "".join(f"{m['content']}\n\n" for m in messages)
        alone = tokenizer(asked)["input_ids"]
    else:
        alone = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    thought = THOUGHT if template == "thinks" else ""

    (pair,) = token_pairs(preference_pairs([record], list(answers)), tokenizer)
    assert pair.prompt == alone
    (row,) = response_rows(tokenizer, [record], list(answers))
    assert row.prompt[: len(alone)] == alone
    assert tokenizer.decode(row.prompt) == tokenizer.decode(alone) + thought
    for text, response, taught in zip(
        answers.values(), row.responses, (pair.chosen, pair.rejected), strict=True
    ):
        assert tokenizer.decode(response).strip() == text
        # What is taught begins with what is scored, and then the turn ends.
        assert (alone + taught)[: len(row.prompt) + len(response)] == [*row.prompt, *response]
        assert tokenizer.decode(taught).startswith(tokenizer.decode(response), len(thought))
        assert taught[-1] == tokenizer.eos_token_id
    prompt = Prompt(tokenizer, messages)
    assert prompt.shown(tokenizer.decode(pair.chosen, skip_special_tokens=True)) == "It is 1."


@pytest.mark.parametrize("kind", ["bytes", "spaces"])
@pytest.mark.parametrize("template", ["plain", "thinks", "spaces"])
def test_a_whole_turn_is_cut_as_trl_cuts_it(template, kind):
    """Where the prompt alone is the beginning of the turn, all tokens are those of the template."""
    tokenizer = tokeniser(kind, TEMPLATES[template])
    turn = [*ASKED, {"role": "assistant", "content": " It is 1.\n"}]
    whole = tokenizer.apply_chat_template(turn)["input_ids"]
    prompt = Prompt(tokenizer, "What is 1?")
    assert prompt.tokens + prompt.taught(" It is 1.\n") == whole


def test_a_prompt_keeps_its_tokens_where_the_text_of_both_is_cut_elsewhere():
    """A line break after a line break is one token at the end, and two before a word."""
    tokenizer = tokeniser("bytes", None)
    alone = tokenizer("What is 1?\n\n")["input_ids"]
    both = tokenizer("What is 1?\n\nIt is 1.")["input_ids"]
    assert both[: len(alone)] != alone
    prompt = Prompt(tokenizer, "What is 1?")
    assert prompt.tokens == alone
    assert tokenizer.decode(alone + prompt.taught("It is 1.")) == "What is 1?\n\nIt is 1.</s>"
    assert prompt.taught("It is 1.</s>") == prompt.taught("It is 1.")


def test_an_answer_that_brings_its_own_thought_gets_no_empty_one():
    tokenizer = tokeniser("bytes", TEMPLATES["thinks"])
    prompt, own = Prompt(tokenizer, "What is 1?"), "<think>Hi.</think>It is 1."
    assert tokenizer.decode(prompt.taught(own)) == own + "</s>"
    row = prompt.row([own, "No idea."])
    assert row.prompt == prompt.tokens
    assert tokenizer.decode(row.responses[0]) == own


def test_a_tokeniser_that_ends_every_text_does_not_end_a_prompt():
    tokenizer = tokeniser("bytes", None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    prompt = Prompt(tokenizer, "Hi.")
    assert tokenizer.decode(prompt.tokens) == "<s>Hi.\n\n"
    assert tokenizer.decode(prompt.taught("Hello.")) == "Hello.</s>"


def test_a_text_is_read_as_the_answer_to_a_whole_conversation(base):
    """The quality of an answer depends on the turns before the question."""
    alone, after = (
        reading(base.model, base.tokenizer, [messages], ["so"])
        for messages in ("What is 1?", EARLIER + ASKED)
    )
    assert alone != after
    assert alone == reading(base.model, base.tokenizer, [ASKED], ["so"])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Only five turns are allowed.') }}", "Only five turns are allowed."),
        ("{{ messages[7]['content'] }}", "no element 7"),
        (TEMPLATE.replace("{% for", "{% if messages[0]['role'] == 'system' %}"
         "{{ raise_exception('System role not supported') }}{% endif %}{% for"), "System role"),
    ],
)  # fmt: skip
def test_what_a_template_complains_of_is_the_message(base, template, said):
    base.tokenizer.chat_template = template
    for ask in (
        lambda: Prompt(base.tokenizer, SYSTEM + ASKED),
        lambda: KnobModel(base.model, base.tokenizer, {}).generate(SYSTEM + ASKED),
    ):
        with pytest.raises(AlignvecError, match="the chat template refuses") as caught:
            ask()
        assert said in str(caught.value)
        assert "Error" not in str(caught.value)


def test_conversations_of_every_form_are_lists_of_messages():
    turn = {"role": "user", "content": "a?"}
    assert conversations("a?") == conversations(["a?"]) == conversations([turn]) == [[turn]]
    assert conversations(["a?", [turn, turn]]) == [[turn], [turn, turn]]
    assert conversations([]) == []
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "?"}],
    }
    assert conversations([parts]) == [[turn]]
    with pytest.raises(AlignvecError, match="role and content"):
        conversations([{"role": "user"}])
    with pytest.raises(AlignvecError, match="is text"):
        conversations([{"role": "user", "content": [{"type": "image", "url": "x"}]}])
    assert text_of(3) is None
    said = [turn, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"},
            {"role": "assistant", "content": "d"}]  # fmt: skip
    assert last_question(said) == "c?"
    assert last_question([{"role": "system", "content": "x"}]) == ""
