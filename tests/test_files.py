import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alignvec.errors import AlignvecError
from alignvec.files import atomic_folder, check_free, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "odd [name]*"
    with pytest.raises(KeyError), atomic_folder(out) as partial:
        (partial / "a").write_text("x")
        raise KeyError
    assert names(tmp_path) == []
    with atomic_folder(out) as partial:
        (partial / "a").write_text("x")
        assert not out.exists()
    assert names(out) == ["a"]
    with pytest.raises(AlignvecError, match="already exists"), atomic_folder(out):
        pass
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "b").write_text("y")
    assert names(out) == ["b"]
    assert names(tmp_path) == [out.name]


KILLED = """
import os, pathlib, signal
from alignvec.files import check_free, atomic_folder
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
with atomic_folder(pathlib.Path({out!r}), overwrite=True) as partial:
    (partial / "b").write_text("new")
    {moment}
"""


@pytest.mark.parametrize(
    "moment", ["die()", "pathlib.Path.rename = lambda a, b: (os.rename(a, b), die())"]
)
def test_a_kill_loses_neither_the_old_nor_the_new(moment, tmp_path):
    """Killed while writing, and between moving the old folder away and the new one in."""
    out = tmp_path / "out"
    with atomic_folder(out) as partial:
        (partial / "a").write_text("old")
    script = KILLED.format(out=str(out), moment=moment)
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(KeyError), atomic_folder(out, overwrite=True):
        assert (out / "a").read_text() == "old"
        raise KeyError
    assert names(tmp_path) == ["out"]


def test_json_is_replaced_whole_and_nan_is_refused(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    assert '"a": 1' in file.read_text()
    assert names(tmp_path) == ["x.json"]
    assert os.access(file, os.R_OK)


def test_two_writers_of_one_folder_do_not_meet(tmp_path):
    """The second is refused, whether it does the same work or other work."""
    out = tmp_path / "out"
    for mine, its in (("same", "same"), ("", ""), ("one", "other")):
        with atomic_folder(out, overwrite=True, resume=mine) as partial:
            (partial / "a").write_text(mine)
            again = atomic_folder(out, overwrite=True, resume=its)
            with pytest.raises(AlignvecError, match="another process is writing"), again:
                pass
        assert (out / "a").read_text() == mine
        assert names(tmp_path) == ["out"]


def test_a_file_that_is_replaced_by_a_folder_is_gone(tmp_path):
    out = tmp_path / "out"
    out.write_text("old")
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "a").write_text("new")
    assert names(out) == ["a"]
    assert names(tmp_path) == ["out"]


def test_a_folder_is_no_place_for_a_file_nor_the_one_we_are_in(tmp_path, monkeypatch):
    with pytest.raises(AlignvecError, match="is a folder, not a file"):
        write_json(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    for here in (".", "..", tmp_path):
        with pytest.raises(AlignvecError, match="the folder that we are in"):
            check_free(Path(here), overwrite=True)
