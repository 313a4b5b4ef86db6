"""Part 8, what else turns at test time, on the same data with the same measures.

    steering    a vector on the residual stream: the difference of means (CAA)
    bipo        such a vector trained by a bidirectional preference loss
    dera        logits between the base and the aligned model, two passes a token
    soup        the weights between two models, each trained towards one end
    scaled      plain LoRA of the paper's training, its scale turned
    along       ours

Each at the strength that reaches a level best on validation queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from alignvec.data.pairs import preference_pairs
from alignvec.evaluate.rates import rates_of
from alignvec.reproduce.dera import Realigned
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.steering import Steered, bipo, choose_layer, difference_of_means
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Subject, Turned
from alignvec.reproduce.training import ALONG, ONE_SIDED, aligned_model, knobs_of, vector
from alignvec.vector.alignment_vector import AlignmentVector

TITLE = "Baselines at test time"
