"""Tells EleutherAI's harness of our model class, so that `lm_eval --model alignvec` finds it.

The harness looks for no entry points of its own. It imports torch, which runs those of the group
`torch.backends`; ours is `announce`, and does nothing where no harness is running.
"""

from __future__ import annotations

import sys
from contextlib import suppress

NAME = "alignvec"


def announce() -> None:
    """Register the class with a harness that is being imported. What it is, loads when asked for.

    A failure would be torch's, in whatever program imports that: none is let out.
    """
    if "lm_eval" not in sys.modules:
        return
    with suppress(Exception):
        # There already; whoever runs no harness need not have it installed.
        import lm_eval.models  # noqa: F401  (its own names first: it fills an empty registry only)
        from lm_eval.api.registry import model_registry

        if NAME not in model_registry:
            model_registry.register(NAME, target="alignvec.evaluate.harness:KnobLM")
