"""Progress: shown by the command line alone, and one bar for a step within a step."""

import pytest

from alignvec import progress
from conftest import run_process


@pytest.fixture
def shown():
    progress.show(True)
    yield
    progress.show(False)


def test_a_library_prints_nothing(capsys):
    with progress.progress("counting", "step", 3) as bar:
        bar.update(3)
        bar.set_postfix(loss="1.0")
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_no_bar(tiny, nudged, tmp_path):
    done = run_process("extract", tiny(), nudged(), "-o", tmp_path / "av")
    assert "%" not in done.stderr
    assert "\r" not in done.stderr


def test_a_step_within_a_step_moves_its_bar_or_is_silent(shown, capsys):
    with progress.progress("sweeping", "query", 10) as outer:
        with progress.progress("scoring", "query", 4) as inner:
            inner.update(4)
        with progress.progress("loading", "B", 100) as other:
            other.update(100)
        assert outer.n == 4
        outer.refresh()
    said = capsys.readouterr().err
    assert "sweeping" in said
    assert "scoring" not in said
    assert "loading" not in said


def test_the_next_step_has_a_bar_of_its_own():
    with pytest.raises(KeyError), progress.progress("one", "step", 2):
        raise KeyError
    with progress.progress("two", "step", 5) as bar:
        bar.update(1)
        assert (bar.n, bar.total) == (0, 5)  # not shown: it does not count
