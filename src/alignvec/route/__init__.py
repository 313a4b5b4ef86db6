"""From a text to its domain, so that a knob acts on its own domain alone."""

from alignvec.route.router import Router

__all__ = ["Router"]
