"""Hidden states of a base: what it makes of a query before it answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.prompts import Prompt

_BATCH = 16


def hidden_means(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Sequence[str]
) -> NDArray[np.float32]:
    """[N, H] float32: hidden states at half the depth, means over the tokens of each query."""
    tokens = [Prompt(tokenizer, query).tokens for query in queries]
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    means = np.zeros((len(tokens), model.config.get_text_config().hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(tokens[index]) for index in batch], batch_first=True
            ).to(model.device)
            lengths = torch.tensor([len(tokens[index]) for index in batch], device=ids.device)
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            states = model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True,
                use_cache=False, logits_to_keep=1,
            ).hidden_states  # fmt: skip
            middle = states[len(states) // 2].float() * mask[:, :, None]
            means[batch] = (middle.sum(1) / lengths[:, None]).cpu().numpy()
    return means
