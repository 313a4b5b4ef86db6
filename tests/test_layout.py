"""The house stays as docs/layout.md says; `make lint` checks the order of the imports."""

from pathlib import Path

from alignvec.align import LOSSES
from alignvec.search.methods import METHODS as SEARCH_METHODS
from alignvec.vector.merge import METHODS as MERGE_METHODS
from conftest import run

PACKAGE = Path(__file__).parents[1] / "src" / "alignvec"


def test_no_file_is_too_long_to_read():
    lengths = {file: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert max(lengths.values()) <= 350, max(lengths, key=lengths.__getitem__)


def test_help_names_what_can_be_chosen():
    said = {command: " ".join(run(command, "--help").stdout.split()) for command in
            ("align", "fold", "search")}  # fmt: skip
    assert all(method in said["fold"] for method in MERGE_METHODS)
    assert all(method in said["search"] for method in SEARCH_METHODS)
    assert all(loss in said["align"] for loss in LOSSES)
