"""A base with knobs on vLLM's offline engine, to be measured as `KnobModel` is (`Measurable`): so
that what does not fit one machine is judged and searched where it is served.

Likelihoods are vLLM's log-probabilities of a prompt, generation is its own; each request has a
setting. Tokens come from and go through alignvec, so they are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, GenerationConfig
from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform

from alignvec.base.dtypes import parse_dtype
from alignvec.base.identity import BaseId
from alignvec.base.load import load_tokenizer
from alignvec.base.logprobs import NO_NUMBERS, Row
from alignvec.base.messages import Messages, conversations
from alignvec.base.model_weights import ModelWeights
from alignvec.base.prompts import Prompt
from alignvec.base.source import base_name, find_model
from alignvec.errors import AlignvecError, NoNumbersError, check_known, one_line
from alignvec.files import file_state, hash_of
from alignvec.knobs.domains import Router, acting_on
from alignvec.knobs.setting import Setting, SettingLike, check_setting, check_settings
from alignvec.progress import progress
from alignvec.serve.vllm.plugin import register
from alignvec.serve.vllm.told import Told, telling
from alignvec.vector.alignment_vector import AlignmentVector, as_vector

_OURS = ("model", "tokenizer", "skip_tokenizer_init", "dtype", "logprobs_mode")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_PENALTY = "repetition_penalty"
_LAST = 10.0  # seconds that an engine has to end
# What a base's generation_config.json may ask of every answer and is not passed on.
_NOT_HAD = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens", "num_beams",
    "exponential_decay_length_penalty", "guidance_scale", "stop_strings", "watermarking_config",
)  # fmt: skip
_NOT_HAD_SAMPLED = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


class VllmModel:
    """A base on vLLM with knobs, a setting a request.

    Attributes:
        vectors: by knob, with the units that hold on this base.
    """

    mode = "vllm"

    def __init__(
        self,
        base: str,
        vectors: Mapping[str, AlignmentVector | str],
        dtype: str | None = None,
        check_base: bool = True,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        """Start an engine.

        Args:
            base: "embedded", folder, GGUF file or hub id.
            vectors: knob name -> vector of low rank, or where to load it from.
            dtype: float32, bfloat16, float16, or what vLLM takes by itself.
            check_base: refuse a vector whose base has another fingerprint.
            engine: arguments of `vllm.LLM` beside these, such as `tensor_parallel_size`.

        Raises:
            AlignvecError: the base or a vector cannot be loaded, or they do not fit; an argument
                is not vLLM's or is set here; or vLLM does not start.
        """
        engine = dict(engine or {})
        known = {field.name for field in fields(EngineArgs)}
        for name in engine:
            check_known("argument of vLLM", name, known)
            if name in _OURS:
                raise AlignvecError(f"vLLM's argument '{name}' is set by alignvec; leave it out")
        parse_dtype(dtype)
        self._name, self._folder = base_name(base), find_model(base)
        read = {knob: as_vector(one) for knob, one in vectors.items()}
        self.vectors = {knob: one.on(self.base) for knob, one in read.items()}
        self.tokenizer = load_tokenizer(self._folder)
        self._generation = _generation_config(self._folder)
        self._setting = dict.fromkeys(self.vectors, 0.0)
        self._told = [dtype, engine]
        # The engine is given numbers, never units.
        bare = {knob: replace(one, calibration=None) for knob, one in read.items()}
        register()  # whether or not VLLM_PLUGINS names it
        try:
            with telling(Told(bare, check_base, offline=True)):
                self._llm = LLM(
                    str(self._folder), dtype=dtype or "auto", logprobs_mode="raw_logprobs", **engine
                )
        except AlignvecError:
            raise
        except Exception as error:  # whatever a platform, a driver or a model may be at fault
            raise AlignvecError(
                f"vLLM does not start: {one_line(error)}; its arguments go into --engine-args"
            ) from error

    @cached_property
    def base(self) -> BaseId:
        """Which base it is, by its weights on disk."""
        weights = ModelWeights(self._folder)
        return BaseId(self._name, weights.fingerprint, weights.detail)

    @property
    def context(self) -> int:
        """Most tokens of a prompt with its answer."""
        return int(self._llm.model_config.max_model_len)

    @cached_property
    def state(self) -> str:
        """A hash of all that an answer or a likelihood depends on but the setting."""
        files = [file_state(file) for file in sorted(self._folder.iterdir())]
        versions = [vllm_version, *map(version, ("alignvec", "torch", "transformers"))]
        vectors = {knob: one.fingerprint() for knob, one in self.vectors.items()}
        return hash_of(files, vectors, self._told, versions)

    @property
    def setting(self) -> Setting:
        """Knob -> its strength, where nothing else is said."""
        return dict(self._setting)

    def set(self, setting: SettingLike | None = None, /) -> VllmModel:
        """Turn the knobs for everything that follows; a knob that is not named goes to 0.

        Raises:
            AlignvecError: an unknown knob, or a strength that is not finite; nothing is turned.
        """
        self._setting = check_setting(setting or {}, self.vectors)
        return self

    def close(self) -> None:
        """End the engine: its processes, and what they hold."""
        self._llm.llm_engine.engine_core.shutdown(timeout=_LAST)

    def acting(self, router: Router, queries: Sequence[str]) -> NDArray[np.bool_]:
        """[N, K]: which knobs act on each query, those of the domain that the router reads.

        Raises:
            AlignvecError: the router reads hidden states.
        """
        if router.reads != "text":
            raise AlignvecError(
                "this router reads hidden states, which vLLM does not give; make one with "
                "alignvec route --reads text"
            )
        return acting_on(router.domain(None, None, queries), self.vectors)

    def scores(self, rows: Sequence[Row], knobs: Sequence[SettingLike]) -> list[list[float]]:
        """s(l) of every response of every row, in nats a token; see `response_scores`.

        Args:
            knobs: a setting for each row; of strengths beyond a safe range nobody is warned.

        Raises:
            AlignvecError: a response has no tokens, or with its prompt more than vLLM has room for.
            NoNumbersError: a likelihood is none.
        """
        if not all(response for row in rows for response in row.responses):
            raise AlignvecError("a response has no tokens: it has no likelihood")
        settings = check_settings(knobs, len(rows), self.vectors, warn=False)
        asked = [
            (tuple(row.prompt), tuple(response), tuple(setting.items()))
            for row, setting in zip(rows, settings, strict=True)
            for response in row.responses
        ]
        distinct = list(dict.fromkeys(asked))  # what is asked twice has one score
        with progress("scoring", "query", len(rows)) as bar:
            outputs = self._run(
                [[*prompt, *response] for prompt, response, _ in distinct],
                [
                    SamplingParams(
                        temperature=0,
                        max_tokens=1,  # fewer it does not take
                        prompt_logprobs=0,  # of the prompt's own tokens, which both runners give
                        detokenize=False,
                        extra_args=_extra(dict(setting)),
                    )
                    for *_, setting in distinct
                ],
                room=1,
            )
            bar.update(len(rows))
        found = {
            one: _mean(output, len(one[0]))
            for one, output in zip(distinct, outputs, strict=True)
        }  # fmt: skip
        if not all(map(math.isfinite, found.values())):
            raise NoNumbersError(NO_NUMBERS)
        each = iter(asked)
        return [[found[next(each)] for _ in row.responses] for row in rows]

    def generate(
        self,
        messages: Messages | Sequence[Messages],
        knobs: Sequence[SettingLike] | None = None,
        max_new_tokens: int = 128,
        **options: Any,
    ) -> list[str]:
        """Answer one conversation or a batch of them.

        Args:
            knobs: a setting for each conversation. None answers all under the setting of `set`.
            options: `do_sample=True` (greedy without it), and for that `temperature`, `top_p`,
                `top_k`, `min_p`; what is not given is as the base has it. Draws are seeded from
                torch's generator (on a CPU by the engine's own seed), and are others than those of
                transformers.

        Returns:
            One answer for each conversation, special tokens removed.

        Raises:
            AlignvecError: the number of settings is not that of conversations, or one is wrong; a
                prompt with its answer is longer than vLLM has room for; or the base asks for
                something in writing that is not passed on to vLLM.
            NoNumbersError: a first token has no likelihood.
        """
        chats = conversations(messages)
        wanted = [self.setting] * len(chats) if knobs is None else knobs
        settings = check_settings(wanted, len(chats), self.vectors)
        prompts = [Prompt(self.tokenizer, chat) for chat in chats]
        told = self._sampling(options)
        # On a CPU vLLM fails at a seed of a request whose prompt is read in parts.
        seeded = told["temperature"] > 0 and not current_platform.is_cpu()
        outputs = self._run(
            [prompt.tokens for prompt in prompts],
            [
                SamplingParams(
                    **told,
                    max_tokens=max_new_tokens,
                    logprobs=1,  # so that one that is none is seen
                    seed=int(torch.randint(2**31, ())) if seeded else None,
                    detokenize=False,
                    extra_args=_extra(setting),
                )
                for setting in settings
            ],
            max_new_tokens,
        )
        for output in outputs:
            _check_numbers(output, self._llm.model_config.get_vocab_size())
        written = [list(output.outputs[0].token_ids) for output in outputs]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [prompt.shown(text) for prompt, text in zip(prompts, texts, strict=True)]

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What transformers would take for an answer, from these options and the base's own."""
        for name in options:
            check_known("option", name, ("do_sample", *_SAMPLING))
        sampled = bool(options.get("do_sample"))
        own = {k: v for k, v in self._generation.to_dict().items() if v is not None}
        for name in (*_NOT_HAD, *(_NOT_HAD_SAMPLED if sampled else ())):
            if name in own and own[name] != _USUAL.get(name):
                raise AlignvecError(
                    f"the base's generation_config.json has {name}={own[name]}, which is not "
                    "passed on to vLLM; answer with --engine transformers, or none (--answers 0)"
                )
        ends = own.get("eos_token_id", [])
        told: dict[str, Any] = {
            _PENALTY: own.get(_PENALTY, 1.0),
            "ignore_eos": True,  # its own idea of the end; the base's is:
            "stop_token_ids": ends if isinstance(ends, list) else [ends],
            "temperature": 0.0,
        }
        if sampled:
            told |= {k: options.get(k, own.get(k, _USUAL[k])) for k in _SAMPLING}
        return told

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], room: int
    ) -> list[RequestOutput]:
        if not prompts:
            return []
        if (longest := max(map(len, prompts)) + room) > self.context:
            raise AlignvecError(
                f"{longest} tokens, up to {room} of them new, find no room in {self.context}; "
                f"--engine-args '{{\"max_model_len\": {longest}}}', if the base goes as far"
            )
        try:
            outputs: list[RequestOutput] = self._llm.generate(
                [{"prompt_token_ids": list(tokens)} for tokens in prompts],
                list(params),
                use_tqdm=False,
            )
            return outputs
        except Exception as error:  # it may be any that a worker raised
            raise AlignvecError(f"vLLM fails: {one_line(error)}") from error


# Transformers' defaults, where neither a caller nor the base says anything.
_USUAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": 0.0} | {
    "min_length": 0, "num_beams": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "min_new_tokens": 0,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip


def _generation_config(folder: Path) -> GenerationConfig:
    """As transformers has it of a checkpoint."""
    if (folder / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def _extra(setting: Setting) -> dict[str, Any] | None:
    return {"knobs": setting} if any(setting.values()) else None


def _mean(output: RequestOutput, start: int) -> float:
    """Nats a token, of a prompt from one of its tokens on."""
    told, tokens = output.prompt_logprobs, output.prompt_token_ids
    assert told is not None
    assert tokens is not None
    values = [
        logprobs[token].logprob
        for logprobs, token in zip(told[start:], tokens[start:], strict=True)
        if logprobs is not None
    ]
    if len(values) != len(tokens) - start:
        raise AlignvecError("vLLM left out log-probabilities of a prompt; please report it")
    return math.fsum(values) / len(values)


def _check_numbers(output: RequestOutput, vocabulary: int) -> None:
    """Refuse an answer whose first token has no likelihood, or whose tokens are all alike."""
    told = output.outputs[0].logprobs
    assert told
    likeliest = max((one.logprob for one in told[0].values()), key=lambda p: (math.isnan(p), p))
    if not math.isfinite(likeliest) or likeliest < 1e-5 - math.log(vocabulary):
        raise NoNumbersError(NO_NUMBERS)
