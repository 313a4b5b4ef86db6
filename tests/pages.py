"""Where every number of a page comes from; what has no source is named.

Numbers that cog writes are checked by cog, code is code, and the target of a link is an address. Of
the rest, in paragraphs, tables, headings and captions, a number is one of

- a part of a name: GPT-2, 135M, Gemma 3, a version, a date, the 27 behaviours (`NAMES`);
- an end of a knob or the base: -1, 0, 1, written so (a rate of 1.00 is not);
- a figure of the paper, in a paragraph that speaks of the paper (`PAPER`);
- within quotation marks, and what they hold stands word for word in a result;
- listed with its source in a comment below its paragraph:

      <!-- numbers
      .08: lines.json: runs / medical, seed 0 / levels / 3 / text / sampled / numbers
      64: alignvec.base.weights: _SAMPLES
      -->

A source is a result file (`FOLDER/FILE.json` where two have one name) with the keys that lead to a
value, or a module with an expression of it. The value, rounded as the page rounds it, is the
number; of a text, one of its numbers. What is listed and not in the paragraph is named too. "four
times" counts as 4; no other word is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "benchmarks" / "results", ROOT / "docs" / "study")  # result files, at any depth

# Figures of arXiv 2410.19206; the issue of the study has them too.
PAPER = {
    ".93": "safe rate at lambda = 1",
    "0.84": "kappa of its annotators",
    "12": "times the speed of retraining",
    "22": "of 27 behaviours",
    "27": "behaviours",
}
ENDS = {"-1", "0", "1"}
NAMES = r"""
    \b[A-Za-z]\w*\d[\w.]*                 # bfloat16, Conv1D
    | \b[A-Z]\w*-\w*\d[\w.-]*             # GPT-2, Apache-2.0
    | \b20\d\d-\d\d-\d\d\b | \b\d+\.\d+\.\d+\b  # dates, versions
    | \b\d+(?:\.\d+)?[MB]\b               # 135M, 1.1B: sizes of models
    | \b4-grams?\b
    | \b(?:Gemma|Python|alignvec|vLLM)\ \d+(?:\.\d+)*
    | \barXiv\s\d{4}\.\d{5}
    | \bet\ al\.\s\d{4}
    | \b27(?=\s(?:behaviours|retrainings))  # three levels in three domains
"""
WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "twelve": "12", "twenty": "20", "fifty": "50", "hundred": "100",
}  # fmt: skip
NUMBER = re.compile(
    r"(?:(?<![\w.)%])-)?(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?|\.\d+)(?:e-?\d+)?(?:\s?%)?"
    rf"|\b(?:{'|'.join(WORDS)})(?=\stimes\b)"
)
_SOURCES = re.compile(r"<!-- numbers\n(.*?)-->", re.DOTALL)
_BETWEEN = re.compile(r"\n\s*\n(?!<!-- numbers)")  # two paragraphs; sources belong to the one above
_UNREAD = (
    re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.DOTALL),
    re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE),
    re.compile(r"`(?:[^`\n]|\n(?!\s*\n))+`"),
    re.compile(r"(?<=\])\([^)\s]+\)|https?://\S+"),
    re.compile(r"^(?:#+ )?\d+\. ", re.MULTILINE),  # of headings and lists
)
_QUOTED = re.compile(r'"[^"]+"')


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, table or heading.

    Attributes:
        start: where it stands in the page.
        text: code, names and quotations blank, as long as in the page.
        sources: number -> source, of the comment below it.
    """

    start: int
    text: str
    sources: dict[str, str]

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Each as it is looked up (15% for "15 %", 4 for "four"), and where in the page it ends."""
        for found in NUMBER.finditer(self.text):
            number = found.group()
            yield WORDS.get(number, re.sub(r"\s", "", number)), self.start + found.end()


def paragraphs(page: str) -> Iterator[Paragraph]:
    for pattern in _UNREAD:
        page = pattern.sub(_blank, page)
    start = 0
    for end in [*(found.end() for found in _BETWEEN.finditer(page)), len(page)]:
        text = page[start:end]
        lines = "".join(_SOURCES.findall(text)).splitlines()
        sources = {number: source for number, _, source in (line.partition(": ") for line in lines)}
        text = re.sub(NAMES, _blank, _SOURCES.sub(_blank, text), flags=re.VERBOSE)
        text = _QUOTED.sub(lambda m: _blank(m) if _is_written(m.group()) else m.group(), text)
        yield Paragraph(start, text, sources)
        start = end


def wrong_numbers(page: str) -> list[str]:
    """Each number without a source, or that its source does not say; sources of no number."""
    wrong = []
    for paragraph in paragraphs(page):
        there = {number for number, _ in paragraph.numbers()}
        said = " ".join(paragraph.text.split())[:200]
        for number in sorted(there - paragraph.sources.keys() - ENDS):
            if not (number in PAPER and re.search(r"\bpaper", paragraph.text)):
                wrong.append(f"{number} has no source: {said}")
        for number, source in paragraph.sources.items():
            if number not in there:
                wrong.append(f"{number} is listed, and not there: {said}")
            elif not is_rounded(number, found := value(source)):
                wrong.append(f"{number} is {found!r:.80} at {source}: {said}")
    return wrong


def value(source: str) -> Any:
    """What stands at a source: `FILE.json: key / key`, or `module: expression`."""
    place, _, path = source.partition(": ")
    if not place.endswith(".json"):
        return eval(path, dict(vars(import_module(place))))
    (file,) = (file for folder in RESULTS for file in folder.rglob("*.json") if file.match(place))
    found = _content(file)
    for key in path.split(" / "):
        found = found[int(key) if isinstance(found, list) else key]
    return found


def is_rounded(number: str, found: Any) -> bool:
    """Whether a number, as a page has it, is a value rounded so; of a text, one of its numbers."""
    if isinstance(found, str):
        return number in NUMBER.findall(found)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    written = Decimal(number.rstrip("%").replace(",", ""))
    half = Decimal(5).scaleb(int(written.as_tuple().exponent) - 1)
    return abs(Decimal(str(found)) * (100 if "%" in number else 1) - written) <= half


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found.group())


def _is_written(quotation: str) -> bool:
    """Whether it stands word for word in a result; a word or two could stand anywhere."""
    words = quotation.strip('"').split()
    files = [file for folder in RESULTS for file in folder.rglob("*.json")]
    texts = (text for file in files for text in _texts(_content(file)))
    return len(words) > 3 and any(" ".join(words) in text for text in texts)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)


@cache
def _content(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))
