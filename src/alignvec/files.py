"""Atomic files: either whole or absent. Write beside the final name, then rename."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignvec.errors import AlignvecError

Schema = TypeVar("Schema", bound=BaseModel)

_RETIRED = ".retired.partial"
_DEPTH = 100  # of lists in lists: far below what stops Python's own readers and writers


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse before any work if `path` is taken, or if its parent cannot be made.

    Raises:
        AlignvecError: `path` exists and `overwrite` is false, or a parent is a file.
    """
    if path.exists() and not overwrite:
        raise AlignvecError(f"{path} already exists; choose another name or pass --overwrite")
    if Path.cwd().is_relative_to(path.resolve()):
        raise AlignvecError(f"{path} is the folder that we are in, or one above it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlignvecError(f"{path.parent} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise AlignvecError(f"{path.parent} is not writable")


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False, resume: str = "") -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it becomes `path`, on failure it is removed.

    A process killed in between leaves a hidden `.NAME.*.partial` folder, never a broken `path`;
    the next write to the same name clears it away.

    Args:
        resume: names the work, down to its inputs. The partial folder that a killed or interrupted
            process left of the same work is then yielded again, with what is in it.
    """
    partial = path.parent / f".{path.name}.{resume or uuid.uuid4().hex[:8]}.partial"
    _recover(path, keep=partial)
    check_free(path, overwrite)
    partial.mkdir(exist_ok=bool(resume))
    with _exclusive_lock(partial, path):
        try:
            yield partial
            mode = partial.stat().st_mode & 0o666  # safetensors makes files for the owner alone
            for file in partial.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
                    _flush_to_disk(file)
            if path.exists():
                retired = partial.with_suffix(_RETIRED)
                path.rename(retired)
                partial.rename(path)
                _remove(retired)
            else:
                partial.rename(path)
        except BaseException as error:
            if not (resume and isinstance(error, KeyboardInterrupt)):
                _remove(partial)
            raise


@contextmanager
def _exclusive_lock(folder: Path, path: Path) -> Iterator[None]:
    """Hold `folder` against other processes; the system lets go when this one ends, killed or not.

    Raises:
        AlignvecError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlignvecError(f"another process is writing {path}; wait for it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _recover(path: Path, keep: Path) -> None:
    """Clear away what a killed write left; what it was about to replace goes back to its place."""
    name = glob.escape(f".{path.name}.")
    for retired in path.parent.glob(f"{name}*{_RETIRED}"):
        if not path.exists():
            retired.rename(path)
    for stale in path.parent.glob(f"{name}*.partial"):
        if stale == keep:
            continue
        if stale.is_dir():
            with _exclusive_lock(stale, path):
                _remove(stale)
        else:
            _remove(stale)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it becomes `path`, else it is removed."""
    check_free(path, overwrite)
    if path.is_dir():
        raise AlignvecError(f"{path} is a folder, not a file")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        _flush_to_disk(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old content or all of the new."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. What comes back can be written again, whatever the file holds.

    Raises:
        AlignvecError: the file is missing, unreadable, not JSON or nested beyond all need.
    """
    if not path.is_file():  # a pipe would be waited for
        raise AlignvecError(f"{path} is missing or no file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
