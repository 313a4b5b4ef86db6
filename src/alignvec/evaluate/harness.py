"""Any task of EleutherAI's lm-evaluation-harness, on a base with its knobs turned.

    lm_eval --model alignvec --model_args base=embedded,vector=medical:medical-av,set=medical=1 ...

The command finds the class by itself (`alignvec.announce`); a program of one's own imports this
module first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from alignvec.announce import NAME
from alignvec.errors import AlignvecError, check_known
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import SettingLike, check_setting, parse_setting
from alignvec.vector.alignment_vector import AlignmentVector

_OWN = ("base", "vector", "set", "dtype", "device", "any_base")
_PASSED_ON = (  # what HFLM does with a model that it is given loaded
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "add_bos_token",
    "prefix_token_id",
    "softmax_dtype",
    "mixed_precision_dtype",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
_ANY = "cuda:0"  # what the harness says where nobody said a device; it takes that for a wish
_NEXT = re.compile(r"\+(?=[^+=:]+[=:])")  # a plus before a knob, not that of 1e+5


class RefusedError(SystemExit, AlignvecError):
    """Wrong arguments. The harness catches nothing, and prints this as one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"error: {message}"


@register_model(NAME)
class KnobLM(HFLM):
    """The harness's own Hugging Face model, with knobs on it that are turned once.

    Attributes:
        knobs: the base with its vectors.
    """

    def __init__(
        self,
        base: str = "",
        vector: str | Mapping[str, str] = "",
        set: str | SettingLike = "",
        dtype: str | None = None,
        device: str | None = None,
        any_base: bool = False,
        **options: Any,
    ) -> None:
        """Load a base and fold a setting into it.

        Args:
            base: "embedded", a checkpoint folder, a `.gguf` file, or a hub id.
            vector: `KNOB:PATH`, several joined by `+`; or a mapping, as `--model_args` takes one
                in JSON.
            set: `KNOB=STRENGTH`, several joined by `+`; `@FILE`; or a mapping.
            dtype: float32, bfloat16 or float16; by default the fastest on the device.
            any_base: put a vector on a base that is not its own.
            options: those of HFLM that are not about loading, such as `batch_size`, `max_length`.

        Raises:
            RefusedError: an argument is wrong, or the base or a vector cannot be loaded.
        """
        options.pop("trust_remote_code", None)  # meant for a task's data; a base's is never run
        try:
            for name in options:
                check_known("model argument", name, [*_OWN, *_PASSED_ON])
            if not base:
                raise AlignvecError("model argument 'base' is missing; base=embedded, or a folder")
            asked = _setting(set)
            read = {k: AlignmentVector.from_pretrained(path) for k, path in _vectors(vector)}
            check_setting(asked, read)
            dtype, device = None if dtype == "auto" else dtype, None if device == _ANY else device
            self.knobs = KnobModel.from_pretrained(
                str(base), read, dtype, device, not any_base, "fold"
            )
            super().__init__(self.knobs.model, tokenizer=self.knobs.tokenizer, **options)
            # Not before: HFLM ties a head to its embedding that a vector moves apart.
            self.knobs.set(asked)
        except AlignvecError as error:
            raise RefusedError(str(error)) from error

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: also which base and vectors, turned how far."""
        info: dict[str, Any] = super().get_model_info()
        vectors = {knob: vector.fingerprint() for knob, vector in self.knobs.vectors.items()}
        return info | {
            "base": self.knobs.base.id,
            "base_fingerprint": self.knobs.base.fingerprint,
            "vectors": vectors,
            "setting": self.knobs.setting,
        }


def _vectors(text: str | Mapping[str, str]) -> list[tuple[str, str]]:
    if isinstance(text, Mapping):
        return list(text.items())
    found: list[tuple[str, str]] = []
    for part in _NEXT.split(str(text)) if text else []:
        knob, colon, path = part.partition(":")
        if not (knob and colon and path):
            raise AlignvecError(f"'{part}' is no vector; write KNOB:PATH, as in medical:medical-av")
        if knob in dict(found):
            raise AlignvecError(f"knob '{knob}' has two vectors")
        found.append((knob, path))
    return found


def _setting(text: str | SettingLike) -> SettingLike:
    if isinstance(text, Mapping):
        return text
    return parse_setting(_NEXT.sub(",", str(text))) if text else {}
