"""Preference training: from a base and preference pairs to an aligned model."""

from alignvec.align.run import RECORD, align
from alignvec.align.settings import LOSSES, METHODS, AlignSettings

__all__ = ["LOSSES", "METHODS", "RECORD", "AlignSettings", "align"]
