"""Preference records: what they are, where they come from, how they become training pairs."""

from alignvec.data.pairs import PreferencePair, preference_pairs
from alignvec.data.records import LEVELS, Record, read_records
from alignvec.data.sources import BUILTIN
from alignvec.data.splits import SPLITS, split_of

__all__ = [
    "BUILTIN",
    "LEVELS",
    "SPLITS",
    "PreferencePair",
    "Record",
    "preference_pairs",
    "read_records",
    "split_of",
]
