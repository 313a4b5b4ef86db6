"""Every number in the docs comes out of a result file that says which command made it.

What `make numbers` writes is compared with the files; all else is read out of the pages and looked
up (pages.py).
"""

import json
import re
from pathlib import Path

import pytest
from cogapp import Cog

from pages import is_rounded, paragraphs, value, wrong_numbers

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [
    page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if "[[[cog" in page.read_text()
]

READ = sorted((ROOT / "README.md", *ROOT.glob("docs/*.md")))
SOURCE = "lines-given.json: runs / medical, seed 0 / levels / 3 / text / sampled / numbers"


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


@pytest.mark.parametrize("file", READ, ids=lambda file: file.stem)
def test_every_number_of_a_page_is_looked_up(file):
    assert not wrong_numbers(file.read_text("utf-8"))


@pytest.mark.parametrize("file", READ, ids=lambda file: file.stem)
def test_a_changed_digit_is_seen(file):
    """Each number that has a source, its last digit another one, in its paragraph alone."""
    page = file.read_text("utf-8")
    for paragraph in paragraphs(page):
        for number, end in paragraph.numbers():
            at = len(page[:end].rstrip("% ")) - 1
            if number in paragraph.sources and page[at].isdigit():
                changed = f"{page[:at]}{(int(page[at]) + 1) % 10}{page[at + 1 :]}"
                assert wrong_numbers(changed), (number, " ".join(paragraph.text.split()))


UNSOURCED = [
    "It reaches .97.", "22 of 27 reached.", "In 1.00 of all.", "+0.5", "12x as fast", "3GB", "30 %",
    "at -2", "top-20", "| a | .3 |", "a range of 1-9", "four times as fast", "## Reached: 13",
    "[.5](x.md)", "*.61*", "1,234", "- one\n\n    .98",
    'It says "A 10-15% drop in temperature is 25% of the 140-160 mmHg".', 'It says "7".',
    "As in the paper.\n\nIt reaches 22.", "By Yu et al. 2023, 2024.", "arXiv 2410.19206 has .4",
]  # fmt: skip
SOURCED = [
    "bfloat16, GPT-2, 135M and 1.1B, Gemma 3 270M, Python 3.11, 4-grams, the 27 behaviours.",
    "arXiv 2410.19206, Yu et al. 2023", "From -1 over 0 to 1.", "The paper reaches 22 of 27.",
    "`.97` and\n\n```\n.98\n```\n\n[x](y.md#z-3), several times",
    "## 3. Search\n\n3. Search", "On 2026-11-29, by lm_eval 0.4.13.",
    'It says "A 10-15% drop in temperature is 20% of the 140-160 mmHg".',
    "<!-- [[[cog cog.outl('.97') ]]] -->\n.97\n<!-- [[[end]]] -->",
]  # fmt: skip


@pytest.mark.parametrize("text", UNSOURCED)
def test_a_number_without_a_source_is_named(text):
    assert wrong_numbers(f"# Page\n\n{text}\n")


@pytest.mark.parametrize("text", SOURCED)
def test_names_ends_quotations_and_the_paper_need_no_source(text):
    assert not wrong_numbers(f"# Page\n\n{text}\n")


def test_a_source_is_for_its_paragraph_and_its_value():
    sources = f"<!-- numbers\n.08: {SOURCE}\n-->"
    assert not wrong_numbers(f".08, .08\n\n{sources}\n")
    for page in (f".09\n\n{sources}", f"Nothing.\n\n{sources}", f".08\n\n.08\n\n{sources}"):
        assert wrong_numbers(page)
    assert wrong_numbers(f".09\n\n{sources.replace('.08', '.09')}")  # listed, and another value


def test_rounding():
    exact = value(SOURCE)  # .0784
    for number in ("0", ".1", ".08", "0.08", ".078", ".0784", "8%", "7.8%", "8e-2"):
        assert is_rounded(number, exact)
    for number in ("1", ".07", ".079", ".0780", "7%", "-.08"):
        assert not is_rounded(number, exact)
    assert is_rounded("10,000", 10000)
    assert is_rounded("8", "random, ranks 4 and 8")
    assert not is_rounded("9", "random, ranks 4 and 8")
    assert not is_rounded("1", True)


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
