"""From a wanted behaviour to a setting."""

from alignvec.search.objective import Objective
from alignvec.search.scorer import Scorer
from alignvec.search.search import search
from alignvec.search.solution import SearchResult, Solution
from alignvec.search.surface import Surface
from alignvec.search.target import Target, behaviours, parse_target

__all__ = [
    "Objective",
    "Scorer",
    "SearchResult",
    "Solution",
    "Surface",
    "Target",
    "behaviours",
    "parse_target",
    "search",
]
