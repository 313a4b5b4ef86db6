"""Vectors as knobs on a live model."""

from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import Setting, parse_setting

__all__ = ["KnobModel", "Setting", "parse_setting"]
