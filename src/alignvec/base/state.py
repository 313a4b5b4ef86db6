"""All that a loaded model computes from, as one hash: the key of whatever is kept of its work."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.live import LiveWeights
from alignvec.base.weights import tensor_bytes
from alignvec.files import hash_of


def model_state(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that the numbers and answers of a loaded model depend on.

    Every weight, the configs, the tokenizer with its template, the kind of device and the versions
    of what computes. Unlike a fingerprint it is of one dtype, and no two models share it.
    """
    buffers = hashlib.sha256()
    for name, value in model.named_buffers():
        buffers.update(name.encode())
        buffers.update(tensor_bytes(value))
    configs = [
        None
        if config is None
        else {
            key: value
            for key, value in config.to_dict().items()
            if key not in ("_name_or_path", "transformers_version")
        }
        for config in (model.config, model.generation_config)
    ]
    versions = [version(name) for name in ("alignvec", "torch", "transformers")]
    return hash_of(
        LiveWeights(model).state, buffers.hexdigest(), configs, _tokenizer_state(tokenizer),
        model.device.type, versions,
    )  # fmt: skip


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.is_fast:
        return [tokenizer.get_vocab(), tokenizer.special_tokens_map, tokenizer.chat_template]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("padding", "truncation"):  # as the last call left them
        backend.pop(passing, None)
    return [backend, tokenizer.special_tokens_map, tokenizer.chat_template]
