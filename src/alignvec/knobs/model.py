"""KnobModel: a base with knobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.knobs.fold import Fold
from alignvec.knobs.setting import Setting, check_setting
from alignvec.vector import AlignmentVector
from alignvec.vector.weights import open_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = str | Sequence[Mapping[str, str]]


class KnobModel:
    """A language model whose preferences turn while it runs.

    ```python
    model = KnobModel.from_pretrained("embedded", vectors={"medical": "medical-av"})
    model.set(medical=1.0)
    model.generate("My knee hurts when I climb stairs. Why?")
    model.set(medical=0)  # the base again, bit for bit
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vectors: Mapping[str, AlignmentVector | str | Path],
        check_base: bool = True,
    ) -> None:
        """Put knobs on a loaded model.

        Args:
            vectors: knob name -> vector, or where to load it from.
            check_base: refuse a vector whose base has another fingerprint.

        Raises:
            AlignvecError: a vector cannot be loaded or does not fit.
        """
        # In memory: a knob turns in milliseconds, not at the speed of a disk.
        loaded = {knob: _load(vector).in_memory() for knob, vector in vectors.items()}
        self.model = model
        self.tokenizer = tokenizer
        live = open_weights(model)
        for vector in loaded.values():
            vector.check_base(live, "this model", check_base)
        self._fold = Fold(model, loaded)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        vectors: Mapping[str, AlignmentVector | str | Path],
        dtype: str | None = None,
        device: str | None = None,
        check_base: bool = True,
    ) -> KnobModel:
        """Load a base ("embedded", folder, GGUF file or hub id) and put knobs on it.

        Args:
            dtype: float32, bfloat16, float16, or the fastest on the device.

        Raises:
            AlignvecError: the base or a vector cannot be loaded, or they do not fit.
        """
        from alignvec.models import load_base

        loaded_vectors = {knob: _load(vector) for knob, vector in vectors.items()}
        loaded = load_base(str(base), dtype, device)
        # Against the weights on disk: float16 in memory would not give the fingerprint back.
        on_disk = open_weights(loaded.folder)
        for vector in loaded_vectors.values():
            vector.check_base(on_disk, loaded.name, check_base)
        return cls(loaded.model, loaded.tokenizer, loaded_vectors, check_base=False)

    @property
    def vectors(self) -> dict[str, AlignmentVector]:
        """Knob -> its vector."""
        return self._fold.vectors

    @property
    def setting(self) -> Setting:
        """Knob -> its strength now."""
        return dict(self._fold.setting)

    def set(self, setting: Mapping[str, float] | None = None, /, **strengths: float) -> KnobModel:
        """Turn the knobs for everything that follows; a knob that is not named goes to 0.

        Raises:
            AlignvecError: an unknown knob, or a strength that is not finite; nothing is turned.
        """
        self._fold.set({**(setting or {}), **strengths})
        return self

    @contextmanager
    def at(self, setting: Mapping[str, float]) -> Iterator[None]:
        """`with model.at({"medical": 1}):` turns the knobs and afterwards turns them back."""
        before = self.setting
        self.set(setting)
        try:
            yield
        finally:
            self.set(before)

    def generate(
        self,
        messages: Messages | Sequence[Messages],
        knobs: Sequence[Mapping[str, float]] | None = None,
        max_new_tokens: int = 128,
        **options: Any,
    ) -> list[str]:
        """Answer one conversation or a batch of them.

        Args:
            messages: a question, a conversation (a list of role/content mappings), or a list of
                either.
            knobs: a setting for each conversation; rows with the same setting run as one batch.
                None answers all under the setting of `set`.
            options: passed on to transformers' `generate`; greedy unless `do_sample=True`.

        Returns:
            One answer for each conversation (times `num_return_sequences`), special tokens removed.

        Raises:
            AlignvecError: the number of settings is not that of conversations, or one is wrong.
        """
        chats = _conversations(messages)
        if knobs is None:
            return self._answer(chats, max_new_tokens, options)
        if len(knobs) != len(chats):
            raise AlignvecError(f"{len(knobs)} settings for {len(chats)} conversations")
        settings = [check_setting(setting, self.vectors) for setting in knobs]
        each = options.get("num_return_sequences", 1)
        answers: list[str] = [""] * (len(chats) * each)
        pending = list(range(len(chats)))
        while pending:
            setting = settings[pending[0]]
            rows = [row for row in pending if settings[row] == setting]
            with self.at(setting):
                found = self._answer([chats[row] for row in rows], max_new_tokens, options)
            for place, row in enumerate(rows):
                answers[row * each : (row + 1) * each] = found[place * each : (place + 1) * each]
            pending = [row for row in pending if row not in rows]
        return answers

    def _answer(
        self, chats: list[list[dict[str, str]]], max_new_tokens: int, options: dict[str, Any]
    ) -> list[str]:
        import torch

        from alignvec.models import render_chat

        texts = [render_chat(self.tokenizer, chat) for chat in chats]
        inputs = self.tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=self.tokenizer.chat_template is None,
        ).to(self.model.device)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                **{
                    "max_new_tokens": max_new_tokens,
                    "do_sample": False,
                    "pad_token_id": self.tokenizer.pad_token_id,
                    **options,
                },
            )
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return [
            text.strip()
            for text in self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        ]


def _load(vector: AlignmentVector | str | Path) -> AlignmentVector:
    if isinstance(vector, AlignmentVector):
        return vector
    return AlignmentVector.from_pretrained(vector)


def _conversations(messages: Any) -> list[list[dict[str, str]]]:
    if isinstance(messages, str) or (messages and isinstance(messages[0], Mapping)):
        messages = [messages]
    return [
        [{"role": "user", "content": chat}]
        if isinstance(chat, str)
        else [dict(message) for message in chat]
        for chat in messages
    ]
