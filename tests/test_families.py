"""The table of docs/families.md: every cell is found out again."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
CELLS = json.loads((BENCHMARKS / "results" / "families.json").read_text())["cells"]


@pytest.mark.parametrize("family", CELLS)
def test_a_family_does_what_the_table_says(family):
    """Otherwise: python benchmarks/families.py -o benchmarks/results/families.json; make numbers"""
    import families

    assert list(families.FAMILIES) == list(CELLS)
    assert families.cells(family) == CELLS[family]
