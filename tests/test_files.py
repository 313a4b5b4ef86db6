import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from alignvec.errors import AlignvecError
from alignvec.files import atomic_folder, check_free, work_folder, write_json
from alignvec.owned import LIST, claim


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != LIST)


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


def test_a_folder_is_no_place_for_a_file_nor_the_one_we_are_in(tmp_path, monkeypatch):
    with pytest.raises(AlignvecError, match="is a folder, not a file"):
        write_json(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    for here in (".", "..", tmp_path):
        with pytest.raises(AlignvecError, match="the folder that we are in"):
            check_free(Path(here), overwrite=True)


def put(path, text="three weeks of work"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def output(out):
    with atomic_folder(out) as partial:
        put(partial / "a")
        put(partial / "deep" / "b")


@pytest.mark.parametrize(
    "place",
    ["out", "out/notes.txt", "out/deep/notes.txt", "out/deep/er/notes.txt", "out/.hidden"],
)
@pytest.mark.parametrize("made", [True, False])
def test_what_somebody_put_there_stays(place, made, tmp_path):
    """Into a folder of ours, or as a folder or a file of the same name, which then is no output."""
    out, theirs = tmp_path / "out", tmp_path / place
    if made and place != "out":
        output(out)
    put(theirs)
    for overwrite in (True, False):
        with pytest.raises(AlignvecError, match=f"{theirs.name}|already exists"):  # noqa: SIM117
            with atomic_folder(out, overwrite):
                raise KeyError  # it is refused before any work
    assert theirs.read_text() == "three weeks of work"
    assert names(tmp_path) == ["out"]


def test_an_output_is_replaced_by_the_next_and_its_copy_too(tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy"
    output(out)
    shutil.copytree(out, copy)
    for folder in (out, copy):
        with atomic_folder(folder, overwrite=True) as partial:
            put(partial / "new")
        assert names(folder) == ["new"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", overwrite=True) as partial:
        put(partial / "new")


def test_what_somebody_puts_there_meanwhile_stays_too(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AlignvecError, match="already exists"), atomic_folder(out) as partial:
        put(partial / "a")
        theirs = put(out / "notes.txt")
    assert theirs.exists()


@pytest.mark.parametrize("name", [".out.0123456789ab.partial", ".out.mine.partial", ".out.work"])
def test_a_folder_that_is_called_like_a_work_folder_stays(name, tmp_path):
    theirs = put(tmp_path / name / "notes.txt")
    works = {
        ".out.0123456789ab.partial": lambda: atomic_folder(tmp_path / "out", resume="0123456789ab"),
        ".out.mine.partial": lambda: atomic_folder(tmp_path / "out"),
        ".out.work": lambda: work_folder(tmp_path / "out"),
    }
    for one, work in works.items():
        in_the_way = pytest.raises(AlignvecError, match=re.escape(name) + " is in the way")
        collides = one == name != ".out.mine.partial"
        with in_the_way if collides else nullcontext(), work() as folder:
            put(folder / "a")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert theirs.exists()


@pytest.mark.parametrize("length", [0, 10])
def test_a_list_whose_writer_was_killed_is_still_ours(length, tmp_path):
    """A kill between the making of a list and its first line."""
    claim(tmp_path)
    begun = (tmp_path / LIST).read_text()[:length]
    put(tmp_path / ".out.mine.partial" / LIST, begun)
    output(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    put(tmp_path / "new" / LIST, begun)
    for value in (1, 2):
        write_json(tmp_path / "new" / "x.json", value, overwrite=True)
    theirs = put(tmp_path / "new" / "notes.txt")
    with pytest.raises(AlignvecError, match=r"notes\.txt"), atomic_folder(tmp_path / "new", True):
        pass
    assert theirs.exists()


def test_a_list_of_somebody_elses_is_none(tmp_path):
    put(tmp_path / "out" / LIST, "*\n")
    theirs = put(tmp_path / "out" / "notes.txt")
    write_json(tmp_path / "out" / "x.json", 1, overwrite=True)  # there is no list to put it on
    with pytest.raises(AlignvecError, match="not of alignvec's making"):
        write_json(tmp_path / "out" / "x.json", 2, overwrite=True)
    with pytest.raises(AlignvecError), atomic_folder(tmp_path / "out", overwrite=True):
        pass
    assert theirs.exists()


def test_a_file_is_replaced_only_if_it_is_ours(tmp_path):
    ours, theirs = tmp_path / "ours.json", put(tmp_path / "theirs.json")
    write_json(ours, 1, overwrite=False)
    with pytest.raises(AlignvecError, match="already exists"):
        write_json(ours, 2, overwrite=False)
    write_json(ours, 2, overwrite=True)
    assert ours.read_text() == "2\n"
    with pytest.raises(AlignvecError, match=r"theirs.json is not of alignvec's making"):
        write_json(theirs, 3, overwrite=True)
    assert theirs.read_text() == "three weeks of work"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_stays_a_link(kind, tmp_path):
    """What it leads to is written; a link to nothing is refused by that."""
    link, place = tmp_path / "link", tmp_path / "there" / "place"
    place.parent.mkdir()
    link.symlink_to(place)

    def write(overwrite=False):
        if kind == "file":
            write_json(link, 1, overwrite)
        else:
            with atomic_folder(link, overwrite) as partial:
                put(partial / "new")

    with pytest.raises(AlignvecError, match=r"link is a link to .*place, which is not there"):
        write()
    if kind == "file":
        write_json(place, 0, overwrite=False)
    else:
        output(place)
    write(overwrite=True)
    assert link.is_symlink()
    assert place.read_text() == "1\n" if kind == "file" else names(place) == ["new"]
    assert names(tmp_path) == ["link", "there"]


def test_a_work_folder_is_held_and_kept_only_for_what_is_worth_it(tmp_path):
    out = tmp_path / "out"
    with work_folder(out) as work:
        with pytest.raises(AlignvecError, match=r"another process is writing .*out"):  # noqa: SIM117
            with work_folder(out):
                pass
        put(work / "checkpoint-1" / "weights")
    assert names(tmp_path) == []
    for worth, left in (("checkpoint-*", [".out.work"]), ("other-*", [])):
        with pytest.raises(KeyError), work_folder(out, worth) as work:
            put(work / "checkpoint-1" / "weights")
            raise KeyError
        assert names(tmp_path) == left


def test_a_file_where_a_work_folder_goes_is_told_and_stays(tmp_path):
    (tmp_path / ".out.work").write_text("mine")
    with (
        pytest.raises(AlignvecError, match=r"out.work is in the way: a folder is made there"),
        work_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / ".out.work").read_text() == "mine"
