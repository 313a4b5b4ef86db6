"""From a wanted behaviour to a setting."""

from alignvec.search.scorer import Scorer
from alignvec.search.search import Found, Search, search
from alignvec.search.surface import Surface
from alignvec.search.target import Target, behaviours, parse_target

__all__ = [
    "Found",
    "Scorer",
    "Search",
    "Surface",
    "Target",
    "behaviours",
    "parse_target",
    "search",
]
