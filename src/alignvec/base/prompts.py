"""How a prompt is put to a base, and how an answer follows: by its chat template, or plain.

The one place for it: training, rates, search and generation have the same tokens before an answer,
those of the prompt alone, as a model has them that is to write one. Where prompt and answer as one
text would be cut into other tokens, it is the answer's that change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.logprobs import Row
from alignvec.base.messages import Conversation, Messages, conversations, last_question, text_of
from alignvec.errors import AlignvecError, one_line

_ANSWER = "\ue000"  # stands for an answer: a character of no script
_PAD = (" \t", "\t ")  # around it: a template that trims answers takes it away


class Prompt:
    """A question or conversation put to a model.

    Attributes:
        tokens: what the model answers to.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
        """Raises: AlignvecError: the chat template refuses the conversation."""
        self._tokenizer = tokenizer
        (self._chat,) = conversations([messages])
        self._text = render_chat(tokenizer, self._chat)
        self.tokens = self._ids(self._text)

    def taught(self, answer: str) -> list[int]:
        """The tokens that a model learns to write after `tokens`: an answer, what the template
        writes before it (an empty thought, say), and the end of the turn.
        """
        start, tokens = self._start(answer)
        written = self._written(answer)
        closing = self._around[1]
        if self._tokenizer.chat_template or not written.endswith(closing):
            written += closing
        return [*tokens[len(self.tokens) :], *self._following(start, tokens, written)]

    def row(self, answers: Sequence[str]) -> Row:
        """The prompt and some answers, to be scored: the answers alone, without what the template
        writes before them.
        """
        tokens, *followed = self.parts(answers)
        return Row(tokens, followed)

    def parts(self, answers: Sequence[str]) -> Iterator[list[int]]:
        """Those of `row` one after the other, each read when it is asked for: first the prompt."""
        start, tokens = self._start(*answers)
        yield tokens
        for answer in answers:
            yield self._following(start, tokens, self._written(answer))

    def shown(self, answer: str) -> str:
        """What a model wrote, without what the template would write before it."""
        with contextlib.suppress(AlignvecError):  # it takes no answer here: there is nothing before
            _, tokens = self._start()
            before = self._tokenizer.decode(tokens[len(self.tokens) :], skip_special_tokens=True)
            answer = answer.strip().removeprefix(before.strip())
        return answer.strip()

    def _start(self, *answers: str) -> tuple[str, list[int]]:
        """What stands before answers, as text and as tokens: the prompt, and a thought that the
        template puts before them, unless one brings its own.
        """
        opening = self._around[0]
        own = any(answer.lstrip().startswith(tuple(opening.split()[:1])) for answer in answers)
        if not opening.strip() or own:
            return self._text, self.tokens
        return self._text + opening, self.tokens + self._following(self._text, self.tokens, opening)

    def _written(self, answer: str) -> str:
        """An answer as the template writes it, with the space before it."""
        opening, _, trims = self._around
        return ("" if opening.strip() else opening) + (answer.strip() if trims else answer)

    @cached_property
    def _around(self) -> tuple[str, str, bool]:
        """What is written before an answer and after it, and whether the answer is trimmed."""
        if self._tokenizer.chat_template is None:
            return "", self._tokenizer.eos_token or "", False
        answer = {"role": "assistant", "content": _ANSWER.join(_PAD)}
        text = _rendered(self._tokenizer, [*self._chat, answer], add_generation_prompt=False)
        head, answer_written, tail = text.partition(_ANSWER)
        if not answer_written:  # the template passes over answers
            return "", self._tokenizer.eos_token or "", False
        trims = not (head.endswith(_PAD[0]) and tail.startswith(_PAD[1]))
        head, tail = head.removesuffix(_PAD[0]), tail.removeprefix(_PAD[1])
        # What the prompt ends with may be for the writer alone; then nothing comes between.
        opening = head[len(self._text) :] if head.startswith(self._text) else ""
        return opening, tail, trims

    def _following(self, before: str, tokens: Sequence[int], text: str) -> list[int]:
        """The tokens of a text that continues others."""
        together = self._ids(before + text)
        if together[: len(tokens)] == list(tokens):
            return together[len(tokens) :]
        # Behind a line break no tokeniser takes the text for the beginning of one, nor joins it.
        start, whole = (
            self._tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in ("\n", f"\n{text}")
        )
        if whole[: len(start)] == start:
            return list(whole[len(start) :])
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ids(self, text: str) -> list[int]:
        if self._tokenizer.chat_template is not None:  # it writes its own special tokens
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return begun(self._tokenizer, text)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens with which a model ends what it writes, as its generation_config has them."""
    config = model.generation_config
    ends = None if config is None else config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])


def begun(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that begins a sequence, as the tokenizer has it, and does not end it."""
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text)["input_ids"])
    starts = (at for at in range(len(ids)) if ids[at : at + len(bare)] == bare)
    return ids[: next(starts, len(ids)) + len(bare)]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> str:
    """A conversation as the text the model answers: through its chat template, or plain.

    Raises:
        AlignvecError: the chat template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        return "".join(f"{text_of(message['content'])}\n\n" for message in messages)
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, add_generation_prompt: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )
    except Exception as error:  # whatever a template says or does
        raise AlignvecError(
            f"the chat template refuses the messages ({', '.join(m['role'] for m in messages)}; "
            f"'{last_question(messages)[:60]}'): {one_line(error)}"
        ) from error
