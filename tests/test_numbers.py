"""Every number in the docs comes out of a result file that says which command made it."""

import json
import re
from pathlib import Path

import pytest
from cogapp import Cog

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [
    page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if "[[[cog" in page.read_text()
]


def test_the_pages_are_what_the_results_say(capsys):
    """Otherwise: make numbers."""
    assert ROOT / "docs" / "benchmarks.md" in PAGES
    status = Cog().main(["cog", "--check", "-I", str(ROOT / "benchmarks"), *map(str, PAGES)])
    assert status == 0, capsys.readouterr()


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_result_says_how_it_was_made_and_is_shown(file):
    made = json.loads(file.read_text())["made"]
    assert all(made[key] for key in ("command", "on", "date", "commit"))
    assert any(file.name in page.read_text() for page in PAGES)


def test_the_data_sheet_counts_right():
    builtin = ROOT / "src" / "alignvec" / "data" / "builtin"
    sheet = (builtin / "DATASHEET.md").read_text()
    counts = {
        file.stem: len(file.read_text("utf-8").splitlines()) for file in builtin.glob("*.jsonl")
    }
    safety, harmless = counts.pop("safety"), counts.pop("harmless")
    assert len(set(counts.values())) == 1
    (each,) = set(counts.values())
    total, a_domain, pairs = map(
        int, re.search(r"(\d+) queries, (\d+) in each.*?(\d+) safety pairs", sheet, re.S).groups()
    )
    assert (total, a_domain, pairs) == (sum(counts.values()), each, safety)
    assert f"{harmless} harmless look-alikes" in sheet
