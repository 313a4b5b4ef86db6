"""Preference training: from a base and preference pairs to an aligned model."""

from alignvec.align.run import align
from alignvec.align.settings import LOSSES, METHODS, AlignSettings
from alignvec.base.checkpoint import RECORD

__all__ = ["LOSSES", "METHODS", "RECORD", "AlignSettings", "align"]
