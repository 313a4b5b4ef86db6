"""The report in the docs is what the stored results of its study say."""

from pathlib import Path

from alignvec.report.study import write_report

ROOT = Path(__file__).parents[2]
STORED = ROOT / "docs" / "study"


def test_the_report_in_the_docs_is_that_of_the_stored_results(tmp_path):
    """Otherwise: `write_report` on the folders of benchmarks/results/study, to docs/study."""
    write_report(sorted((ROOT / "benchmarks" / "results" / "study").iterdir()), tmp_path)
    made = [tmp_path / "report.md", *sorted((tmp_path / "tables").iterdir())]
    assert {file.name for file in made[1:]} == {one.name for one in (STORED / "tables").iterdir()}
    for file in made:
        there = STORED / file.relative_to(tmp_path)
        assert there.read_text("utf-8") == file.read_text("utf-8"), there.name
