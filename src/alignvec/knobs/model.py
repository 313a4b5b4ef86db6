"""KnobModel: a base with knobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.identity import BaseId, base_id
from alignvec.base.likelihood import response_scores
from alignvec.base.live import LiveWeights, open_weights
from alignvec.base.load import load_base
from alignvec.base.logprobs import NO_NUMBERS, Row, no_numbers, out_of_place
from alignvec.base.messages import Conversation, Messages, conversations, last_question
from alignvec.base.positions import positions
from alignvec.base.prompts import Prompt
from alignvec.base.state import model_state
from alignvec.base.wrappers import plain_model
from alignvec.errors import AlignvecError, NoNumbersError, check_known
from alignvec.files import hash_of
from alignvec.knobs.domains import Router, acting_on, routed
from alignvec.knobs.fold import Fold
from alignvec.knobs.gate import Gate
from alignvec.knobs.schedule import Schedule, ScheduledStrengths, check_schedule
from alignvec.knobs.setting import Setting, SettingLike, check_setting, check_settings
from alignvec.vector.alignment_vector import AlignmentVector, as_vector

logger = logging.getLogger(__name__)

MODES = ("auto", "fold", "gate")


class KnobModel:
    """A language model whose preferences turn while it runs.

    ```python
    model = KnobModel.from_pretrained("embedded", vectors={"medical": "medical-av"})
    model.set(medical=1.0)
    model.generate("My knee hurts when I climb stairs. Why?")
    model.set(medical=0)  # the base again, bit for bit
    ```

    Two ways lead to a setting. `fold` adds it into the weights: turning takes a moment, then
    nothing costs more than the base, but there is one setting at a time. `gate` keeps the vectors
    beside the weights: turning is free and each row of a batch has its own setting, for a little
    more work per token. `auto` folds while rows share a setting, and gates a batch that differs.

    Its methods may be called from several threads; they take turns.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vectors: Mapping[str, AlignmentVector | str | Path],
        check_base: bool = True,
        mode: str = "auto",
        base: BaseId | None = None,
    ) -> None:
        """Put knobs on a loaded model, or on the one that a compiled or distributed one wraps.

        Args:
            vectors: knob name -> vector, or where to load it from.
            check_base: refuse a vector whose base has another fingerprint.
            mode: auto, fold or gate.
            base: which one the model is; by default what its live weights say.

        Raises:
            AlignvecError: a vector cannot be loaded, does not fit, or cannot be gated.
        """
        check_known("mode", mode, MODES)
        plain: Any = plain_model(model)
        live = LiveWeights(plain)
        self.base = base or base_id(plain, live)
        # In memory: a knob turns in milliseconds, not at the speed of a disk.
        self.vectors = {
            knob: as_vector(vector).on(self.base).in_memory().fitted(live, "this model", check_base)
            for knob, vector in vectors.items()
        }
        self.model: PreTrainedModel = plain
        self.tokenizer = tokenizer
        self.mode = mode
        self._setting = dict.fromkeys(self.vectors, 0.0)
        self._lock = threading.RLock()
        if mode == "gate":
            self.set()  # what cannot be gated is refused now

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        vectors: Mapping[str, AlignmentVector | str | Path],
        dtype: str | None = None,
        device: str | None = None,
        check_base: bool = True,
        mode: str = "auto",
    ) -> KnobModel:
        """Load a base ("embedded", folder, GGUF file or hub id) and put knobs on it.

        Args:
            dtype: float32, bfloat16, float16, or the fastest on the device.
            mode: auto, fold or gate.

        Raises:
            AlignvecError: the base or a vector cannot be loaded, or they do not fit.
        """
        read = {knob: as_vector(vector) for knob, vector in vectors.items()}
        loaded = load_base(str(base), dtype, device)
        # Against the weights on disk: float16 in memory would not give the fingerprint back.
        on_disk = open_weights(loaded.folder)
        fitting = {
            knob: vector.fitted(on_disk, loaded.name, check_base) for knob, vector in read.items()
        }
        known = BaseId(loaded.name, on_disk.fingerprint, on_disk.detail)
        return cls(loaded.model, loaded.tokenizer, fitting, False, mode, known)

    @cached_property
    def state(self) -> str:
        """A hash of all that an answer or a likelihood depends on but the setting."""
        with self.at({}):
            base = model_state(self.model, self.tokenizer)
        return hash_of(base, {knob: one.fingerprint() for knob, one in self.vectors.items()})

    @property
    def context(self) -> int | None:
        """Most tokens of a prompt with its answer; None: there is no end."""
        return positions(self.model.config)

    @cached_property
    def gate(self) -> Gate:
        """The vectors beside the weights. Set strengths on it for forward passes of your own."""
        if any(vector.kind == "full" for vector in self.vectors.values()):
            logger.info("a full vector is gated by dense products; compressed it would be faster")
        return Gate(self.model, self.vectors)

    @cached_property
    def _fold(self) -> Fold:
        return Fold(self.model, self.vectors)

    @property
    def setting(self) -> Setting:
        """Knob -> its strength now."""
        return dict(self._setting)

    def set(self, setting: SettingLike | None = None, /, **strengths: float | str) -> KnobModel:
        """Turn the knobs for everything that follows; a knob that is not named goes to 0.

        A strength is a number, or of a calibrated knob a level (`"expert"`), a share of its
        highest level (`"80%"`), or a position between its ends (`"7/10"`).

        Raises:
            AlignvecError: an unknown knob, or a strength that is not finite; nothing is turned.
        """
        wanted = check_setting({**(setting or {}), **strengths}, self.vectors)
        with self._lock:
            if self.mode == "gate":
                self.gate.set(self.gate.tensor([wanted]))
            elif wanted != self._setting:
                try:
                    self._fold.set(wanted)
                except BaseException:  # interrupted, or out of memory
                    self._fold.set(self._setting)
                    raise
            self._setting = wanted
        return self

    @contextmanager
    def at(self, setting: SettingLike) -> Iterator[None]:
        """`with model.at({"medical": 1}):` turns the knobs and afterwards turns them back."""
        with self._lock:
            before = self.setting
            self.set(setting)
            try:
                yield
            finally:
                self.set(before)

    def acting(self, router: Router, queries: Sequence[str]) -> NDArray[np.bool_]:
        """[N, K]: which knobs act on each query, those of the domain that the router reads."""
        router.check_base(self.base)
        with self.at({}):  # it reads hidden states of the base
            found = router.domain(self.model, self.tokenizer, queries)
        return acting_on(found, self.vectors)

    def detach(self) -> PreTrainedModel:
        """Take the knobs off; returns the base as it was."""
        self.set()
        if "gate" in vars(self):
            self.gate.detach()
            del self.gate
        return self.model

    def generate(
        self,
        messages: Messages | Sequence[Messages],
        knobs: Sequence[SettingLike] | None = None,
        max_new_tokens: int = 128,
        schedule: Schedule | None = None,
        router: Router | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer one conversation or a batch of them.

        Args:
            messages: a question, a conversation (a list of role/content mappings), or a list of
                either.
            knobs: a setting for each conversation. None answers all under the setting of `set`.
            schedule: new token -> factor on all strengths, straight lines between (not in mode
                `fold`).
            router: reads the domain of each conversation from its last question, and only the
                knobs of that domain act on it.
            options: passed on to transformers' `generate`; greedy unless `do_sample=True`.

        Returns:
            One answer for each conversation (times `num_return_sequences`), special tokens removed.

        Raises:
            AlignvecError: the number of settings is not that of conversations, or one is wrong.
            NoNumbersError: a first token has no likelihood.
        """
        chats = conversations(messages)
        if not chats:
            return []
        if options.pop("return_dict_in_generate", False):
            raise AlignvecError("answers are text; for return_dict_in_generate call model.model")
        wanted = [self.setting] * len(chats) if knobs is None else knobs
        settings = check_settings(wanted, len(chats), self.vectors)
        if router is not None:
            acting = self.acting(router, [last_question(chat) for chat in chats])
            settings = routed(settings, acting)
        shared = all(setting == settings[0] for setting in settings)
        if schedule is not None:
            schedule = check_schedule(schedule)
            if self.mode == "fold":
                raise AlignvecError("a schedule turns the knobs at every token: not in mode 'fold'")
            if options.get("assistant_model") or options.get("prompt_lookup_num_tokens"):
                raise AlignvecError("a schedule goes token by token: not with assisted decoding")
        with self._lock:
            if self.mode == "fold" or (self.mode == "auto" and shared and schedule is None):
                return self._generate_folded(chats, settings, max_new_tokens, options)
            strengths = self.gate.tensor(settings[:1] if shared else settings)
            with self.at({}), self.gate.rows(strengths):
                return self._answer(chats, max_new_tokens, options, schedule)

    def scores(self, rows: Sequence[Row], knobs: Sequence[SettingLike]) -> list[list[float]]:
        """s(l) of every response of every row, in nats a token; see `response_scores`.

        Args:
            knobs: a setting for each row; of strengths beyond a safe range nobody is warned.
        """
        if not rows:
            return []
        settings = check_settings(knobs, len(rows), self.vectors, warn=False)
        with self._lock:
            if all(setting == settings[0] for setting in settings):  # less in the weights
                with self.at(settings[0]):
                    return response_scores(self.model, rows)
            strengths = torch.tensor([list(setting.values()) for setting in settings])
            with self.at({}):
                return response_scores(
                    self.model, rows, within=lambda batch: self.gate.rows(strengths[batch])
                )

    def _generate_folded(
        self,
        chats: list[Conversation],
        settings: list[Setting],
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> list[str]:
        """Rows that share a setting run as one batch."""
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
        self,
        chats: list[Conversation],
        max_new_tokens: int,
        options: dict[str, Any],
        schedule: Schedule | None = None,
    ) -> list[str]:
        prompts = [Prompt(self.tokenizer, chat) for chat in chats]
        inputs = self.tokenizer.pad(
            {"input_ids": [prompt.tokens for prompt in prompts]},
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        processors = [_StopAtNaN(), *options.get("logits_processor", [])]
        if schedule is not None:
            processors.append(ScheduledStrengths(self.gate, schedule, length))
        options = {**options, "logits_processor": processors}
        told = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "pad_token_id": self.tokenizer.pad_token_id,
            **options,
        }
        try:
            with torch.inference_mode():
                output = self.model.generate(**inputs, **told)
        except IndexError:  # of positions that were learnt one by one
            asked = f"a prompt of {length} tokens and up to {told['max_new_tokens']} new ones are"
            way_out = "ask for fewer (max_new_tokens)"
            raise out_of_place(self.model, inputs["input_ids"], asked, way_out) from None
        texts = self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        each = len(texts) // len(prompts)
        return [prompts[row // each].shown(text) for row, text in enumerate(texts)]


class _StopAtNaN:
    """Stops an answer whose first token has no likelihood: a knob was turned too far."""

    def __init__(self) -> None:
        self._first = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._first and no_numbers(scores).any():
            raise NoNumbersError(NO_NUMBERS)
        self._first = False
        return scores
