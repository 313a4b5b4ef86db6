"""Atomic files: either whole or absent. Write beside the final name, then rename."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignvec.errors import AlignvecError
from alignvec.owned import claim, foreign, list_all, note
from alignvec.system import flush, lock

Schema = TypeVar("Schema", bound=BaseModel)

_RETIRED = ".retired.partial"
_DEPTH = 100  # of lists in lists: far below what stops Python's own readers and writers


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse before any work what may not be written to.

    Raises:
        AlignvecError: `path` exists and `overwrite` is false, or holds what alignvec did not write;
            it is a link to nothing; or its parent cannot be made.
    """
    if path.is_symlink() and not path.exists():
        raise AlignvecError(
            f"{path} is a link to {path.readlink()}, which is not there; remove the link or choose "
            "another name"
        )
    if path.exists() and not overwrite:
        raise AlignvecError(f"{path} already exists; choose another name or pass --overwrite")
    if Path.cwd().is_relative_to(path.resolve()):
        raise AlignvecError(f"{path} is the folder that we are in, or one above it")
    if path.exists() and (other := foreign(path.resolve())):
        where = path if other == path.resolve() else other
        raise AlignvecError(
            f"{where} is not of alignvec's making and stays; move it away or choose another name"
        )
    _check_parent(path)


def _check_parent(path: Path) -> None:
    there = next(one for one in path.absolute().parents if one.exists())
    if not there.is_dir():
        raise AlignvecError(f"{path} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK):
        raise AlignvecError(f"{there} is not writable")


@contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """Make what lies above `path`; if nothing comes of it, that goes again."""
    _check_parent(path)
    made = [one for one in path.parents if not one.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in made:
            with suppress(OSError):
                one.rmdir()  # if it is empty
        raise


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False, resume: str = "") -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it becomes `path`, on failure it is removed.

    A process killed in between leaves a hidden `.NAME.*.partial` folder, never a broken `path`;
    the next write to the same name clears it away.

    Args:
        resume: names the work, down to its inputs. The partial folder that a killed or interrupted
            process left of the same work is then yielded again, with what is in it.
    """
    place = _behind_link(path)
    partial = place.with_name(f".{place.name}.{resume or uuid.uuid4().hex[:8]}.partial")
    _recover(place, keep=partial)
    check_free(path, overwrite)
    if path.is_file():
        raise AlignvecError(f"{path} is a file; a folder goes there")
    with _held(partial, path):
        try:
            yield partial
            mode = partial.stat().st_mode & 0o666  # safetensors makes files for the owner alone
            list_all(partial)
            for file in partial.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
                    flush(file)
            check_free(path, overwrite)  # somebody may have put something there meanwhile
            if place.exists():
                retired = partial.with_suffix(_RETIRED)
                place.rename(retired)
                partial.rename(place)
                _remove(retired)
            else:
                partial.rename(place)
        except BaseException as error:
            if not (resume and isinstance(error, KeyboardInterrupt)):
                _remove(partial)
            raise


@contextmanager
def work_folder(path: Path, worth: str = "") -> Iterator[Path]:
    """Yield a hidden folder beside `path` for what making it takes, ours alone until the end.

    It is removed on success, and on failure too unless there is something of the pattern `worth`
    in it, to go on from: the next run finds that.

    Raises:
        AlignvecError: another process has it, or somebody else made it.
    """
    place = _behind_link(path)
    work = place.with_name(f".{place.name}.work")
    with _held(work, path):
        try:
            yield work
        except BaseException:
            if not (worth and any(work.glob(worth))):
                _remove(work)
            raise
        _remove(work)


@contextmanager
def _held(folder: Path, path: Path) -> Iterator[None]:
    """Make a work folder for `path`, or take one that is left, and hold it.

    Raises:
        AlignvecError: another process holds it, or somebody else made it.
    """
    with _folder_for(folder), _exclusive_lock(folder, path, make=True):
        if other := foreign(folder):
            raise AlignvecError(
                f"{folder} is in the way: alignvec did not make {other.name} in it; move it away "
                "or choose another name for the output"
            )
        claim(folder)
        yield


@contextmanager
def _exclusive_lock(folder: Path, path: Path, make: bool = False) -> Iterator[None]:
    """Hold `folder` against other processes; the system lets go when this one ends, killed or not.

    Args:
        make: the folder, if it is not there.

    Raises:
        AlignvecError: another process holds it.
    """
    if make:
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise AlignvecError(
                f"{folder} is in the way: a folder is made there for the work on {path}; move it "
                "away or choose another name for the output"
            ) from None
    try:
        descriptor = lock(folder)
    except BlockingIOError:
        raise AlignvecError(f"another process is writing {path}; wait for it") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _recover(path: Path, keep: Path) -> None:
    """Clear away what a killed write left; what it was about to replace goes back to its place."""
    name = glob.escape(f".{path.name}.")
    left = [one for one in path.parent.glob(f"{name}*.partial") if one.is_dir() and one != keep]
    for folder in left:
        if foreign(folder):
            continue  # not ours, for all its name
        with _exclusive_lock(folder, path):
            if folder.name.endswith(_RETIRED) and not path.exists():
                folder.rename(path)
            else:
                _remove(folder)


def _remove(folder: Path) -> None:
    if foreign(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)


def _behind_link(path: Path) -> Path:
    """Where a link leads: what is written takes the place of that, not of the link."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def atomic_file(path: Path, overwrite: bool | None = None) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it becomes `path`, else it is removed.

    Args:
        overwrite: of an output: whether an earlier one may be replaced, see `check_free`. None of a
            file that is ours because of where it lies.
    """
    if path.is_dir():
        raise AlignvecError(f"{path} is a folder, not a file")
    if overwrite is not None:
        check_free(path, overwrite)
    place = _behind_link(path)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.partial")
    with _folder_for(place):
        try:
            yield partial
            flush(partial)
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if overwrite is not None:
        note(place)


def write_text(path: Path, text: str, overwrite: bool | None = None) -> None:
    """Write `text` so that `path` holds either its old content or all of the new."""
    with atomic_file(path, overwrite) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, overwrite: bool | None = None) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", overwrite)


def read_json(path: Path) -> Any:
    """Read a JSON file. What comes back can be written again, whatever the file holds.

    Raises:
        AlignvecError: the file is missing, unreadable, not JSON or nested beyond all need.
    """
    if not path.is_file():  # a pipe would be waited for
        raise AlignvecError(f"{path} is missing or no file")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if _exceeds_depth(value):
            raise RecursionError(f"more than {_DEPTH} levels deep")
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (OSError, ValueError, RecursionError) as error:
        raise AlignvecError(f"{path} is not readable JSON: {error}") from error
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        AlignvecError: it does not; see `read_json`.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise AlignvecError(f"{path} holds no JSON object")
    return value


def validated(schema: type[Schema], content: Any, where: object) -> Schema:
    """`content` as an instance of `schema`.

    Raises:
        AlignvecError: a field is missing or wrong; `where` and the first such field are named.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        field = f"field '{place}': " if place else ""
        wrong = "not an object" if first["type"] == "model_type" else first["msg"]
        raise AlignvecError(f"{where}: {field}{wrong.removeprefix('Value error, ')}") from None


def file_state(path: Path) -> list[str | int]:
    """What changes when a file does: where it lies, its size and times. Nothing of a missing one.

    The time of the last change of its inode is one of them, which no copying tool sets back.
    """
    try:
        found = path.stat()
    except OSError:
        return []
    return [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def hash_of(*what: object) -> str:
    """A short name for values that JSON can hold, the same in every process."""
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _exceeds_depth(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return bool(level)
