"""Train, validation and test by a hash of the record's id: the same for everyone, for ever."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION = 0.7, 0.1


def split_of(record_id: str) -> str:
    """The split a record belongs to: 70% train, 10% validation, 20% test.

    It depends on the id alone, so adding or reordering records never moves one into another split.
    """
    digest = hashlib.sha256(record_id.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < _TRAIN:
        return "train"
    return "validation" if share < _TRAIN + _VALIDATION else "test"
