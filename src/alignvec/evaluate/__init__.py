"""What a setting does: preference rates, and sweeps over a knob."""

from alignvec.evaluate.rates import Rates, preference_rates, response_rows
from alignvec.evaluate.sweep import Sweep, sweep

__all__ = ["Rates", "Sweep", "preference_rates", "response_rows", "sweep"]
