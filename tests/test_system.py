"""What one operating system or the other lacks is taken away: the results stay the same."""

import ast
import os
from pathlib import Path

import pytest

from alignvec import system
from alignvec.data.synthesis.journal import Journal
from alignvec.errors import AlignvecError
from alignvec.files import atomic_folder, write_json
from conftest import run

PACKAGE = Path(system.__file__).parent
MACOS = ("fdatasync", "posix_fallocate", "sched_getaffinity", "preadv", "pwritev")
WINDOWS = (*MACOS, "pwrite", "pread", "getuid", "fork", "fchmod", "uname", "sysconf")
ELSEWHERE = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "msvcrt", "winreg"}


@pytest.fixture(params=["macos", "windows"])
def other_system(request, monkeypatch):
    """This one without what the other lacks."""
    for name in MACOS if request.param == "macos" else WINDOWS:
        monkeypatch.delattr(os, name, raising=False)
    if request.param == "windows":
        monkeypatch.setattr(system, "fcntl", None)
        monkeypatch.setattr(os, "O_TEMPORARY", 0, raising=False)  # there is nothing like it here
    return request.param


def test_platform_calls_are_in_one_file():
    for file in PACKAGE.rglob("*.py"):
        if file.name == "system.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {one.name for one in node.names} | {getattr(node, "module", None)}
                assert not names & ELSEWHERE, file
            if isinstance(node, ast.Attribute):
                assert node.attr not in {*WINDOWS, "statvfs", "st_blocks", "O_DIRECTORY"}, file


def contents(folder):
    return {(folder.name, file.name): file.read_bytes() for file in folder.glob("*.safetensors")}


def made(base, aligned, where):
    run("extract", base, aligned, "-o", where / "av")
    run("fold", base, "--vector", f"k={where / 'av'}", "--set", "k=.5", "-o", where / "model")
    return contents(where / "av") | contents(where / "model")


@pytest.fixture
def made_here(tiny, nudged, tmp_path):
    return made(tiny(), nudged(), tmp_path / "here")


def test_vectors_and_folded_models_are_the_same(made_here, tiny, nudged, tmp_path, other_system):
    assert made(tiny(), nudged(), tmp_path / "there") == made_here != {}


def test_files_are_whole_and_one_writer_has_them(tmp_path, other_system):
    write_json(tmp_path / "a.json", {"a": 1})
    write_json(tmp_path / "a.json", {"a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2\n}\n'
    with atomic_folder(tmp_path / "out", resume="x") as partial:
        (partial / "b").write_text("b")
        with (
            pytest.raises(AlignvecError, match="another process is writing"),
            atomic_folder(tmp_path / "out", resume="x"),
        ):
            pass
    journal = Journal(tmp_path / "journal")
    with pytest.raises(AlignvecError, match="another process is writing"):
        Journal(tmp_path / "journal")
    journal.close()


def test_bytes_are_written_at_their_place(tmp_path, other_system):
    file = tmp_path / "file"
    file.write_bytes(bytes(8))
    with file.open("r+b", buffering=0) as handle:
        for at, content in ((5, b"abc"), (1, b"xy")):
            assert system.write_at(handle.fileno(), memoryview(content), at) == len(content)
    system.flush(file)
    system.flush(file, times=False)
    assert file.read_bytes() == b"\0xy\0\0abc"
    read = bytearray(4)
    with file.open("rb", buffering=0) as handle:
        for at, count, content in ((5, 3, b"abc"), (1, 4, b"xy\0\0"), (8, 0, b"xy\0\0")):
            assert system.read_at(handle.fileno(), memoryview(read), at) == count
            assert read.startswith(content)


def test_without_locks_and_sizes_of_blocks(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert system.bytes_on_disk(file) >= 5
    monkeypatch.setattr(system, "fcntl", None)
    for _ in range(2):
        os.close(system.lock(file))
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
