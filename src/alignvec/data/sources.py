"""Where rows come from: the built-in set, a file as people have them, or a dataset."""

from __future__ import annotations

import csv
import glob
import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from alignvec.errors import AlignvecError, one_line

logger = logging.getLogger(__name__)

BUILTIN = "builtin"
_APART = ("safety", "harmless")  # built-in domains with levels of their own
_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv")
_COLUMNS = (".parquet", ".arrow")  # that datasets reads
_FILES = (*_JSON, *_TABLES, *_COLUMNS, ".gz", ".zip", ".zst", ".xz", ".xlsx", ".txt")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")
_MESSAGES = re.compile(r"\s*(\[\s*)?\{")
_LONGEST_CELL = 2**31 - 1
_BETWEEN = ", \t\r\n"  # two items of an array


def rows(source: str, domain: str | None = None) -> Iterator[tuple[str, Any]]:
    """(where, fields) of every row of a source.

    A file is JSON Lines, one JSON array or a table (CSV, TSV), each perhaps packed by gzip, or it
    is Parquet or Arrow: its name says which, in capitals or not.

    Args:
        domain: of `builtin`, `safety` or `harmless` gives the rows of that domain alone, which are
            not among the others. Other domains are not told apart here.

    Raises:
        AlignvecError: there is no such source, or a row of it cannot be read; with file and line.
    """
    path = Path(source).expanduser()
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    name, _, config = source.partition(":")  # a folder or a hub id, and which part of it
    if source == BUILTIN:
        apart = [file for file in builtin_files() if file.stem == domain and domain in _APART]
        for file in apart or builtin_levels():
            yield from _json_rows(file)
    elif path.is_file() and kind in _JSON:
        yield from _json_rows(path)
    elif path.is_file() and kind in _TABLES:
        yield from _table_rows(path)
    elif path.is_file() and path.suffix.lower() in _COLUMNS:
        yield from _dataset_rows(
            path.name, kind.removeprefix("."), data_files=glob.escape(str(path))
        )
    elif not name.strip(" /"):
        raise AlignvecError(f"'{source}' names no data: a file, a dataset folder or a hub id")
    elif path.is_dir():
        yield from _dataset_rows(source, str(path))
    elif path.is_file():
        raise AlignvecError(
            f"{source}: records are in JSON Lines (.jsonl), a JSON array (.json), a table (.csv, "
            ".tsv), Parquet (.parquet), or a folder of a dataset"
        )
    elif (folder := Path(name).expanduser()).is_dir():
        yield from _dataset_rows(source, str(folder), name=config or None)
    elif _HUB_ID.fullmatch(source) and path.suffix.lower() not in _FILES:
        yield from _dataset_rows(source, name, name=config or None)
    else:
        raise AlignvecError(f"no data at '{source}': no such file or folder")


def builtin_files() -> list[Path]:
    """The JSON Lines files of the built-in set, on disk."""
    folder = Path(str(resources.files("alignvec.data"))) / "builtin"
    return sorted(folder.glob("*.jsonl"))


def builtin_levels() -> list[Path]:
    """Those with three levels: safety pairs and harmless look-alikes are read by their domain."""
    return [file for file in builtin_files() if file.stem not in _APART]


def is_table(path: Path) -> bool:
    """Whether a file is one of rows, by its name."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    return kind in (*_JSON, *_TABLES, *_COLUMNS)


def one_a_line(path: Path) -> bool:
    """Whether a file has a row a line, to be read and judged one by one: JSON Lines, plain."""
    if path.suffix.lower() in (*_TABLES, *_COLUMNS, ".gz"):
        return False
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").lstrip()
    try:
        return not (content.startswith(b"[") and isinstance(json.loads(content), list))
    except (ValueError, RecursionError):
        return True  # and the lines that are no rows are told one by one


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file, without the mark that editors put before UTF-8."""
    open_file: Any = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with open_file(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if nuls := raw.count(b"\0"):
                    if nuls >= len(raw) // 3:  # UTF-16, that some programmes call Unicode
                        raise UnicodeError
                    raise AlignvecError(
                        f"{path.name}, line {number}: a NUL byte, as where writing was cut off"
                    )
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeError:
        raise AlignvecError(
            f"{path.name}, line {number}: not UTF-8 text; save the file as UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AlignvecError(f"{path} cannot be unpacked: {one_line(error)}") from None
    except OSError as error:
        raise AlignvecError(f"{path} cannot be read: {error.strerror}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Of JSON Lines, one object laid out over lines, or the items of one array."""
    numbered = _lines(path)
    start = next(((number, text) for number, text in numbered if text.strip()), None)
    if start is None:
        return
    number, text = start
    if text.lstrip().startswith("["):
        whole = text + "".join(text for _, text in numbered)
        items = _parsed(whole, path.name, number)
        lines = [number + line for line in _lines_of_items(whole, len(items))]
        apart = len({*lines}) == len(lines)
        for index, (line, item) in enumerate(zip(lines, items, strict=True), start=1):
            yield f"{path.name}, line {line}" + ("" if apart else f", item {index}"), item
        return
    if text.lstrip().startswith("{") and not _is_json(text):  # one object over several lines?
        whole = text + "".join(text for _, text in numbered)
        yield (
            f"{path.name}, line {number}",
            _parsed(whole if _is_json(whole) else text, path.name, number),
        )
        return
    for number, text in itertools.chain([start], numbered):
        if text.strip():
            yield f"{path.name}, line {number}", _parsed(text, path.name, number)


def _lines_of_items(array: str, count: int) -> Iterator[int]:
    """How many lines come before that in which each item of an array begins."""
    decoder, end, line = json.JSONDecoder(), array.index("[") + 1, 0
    for _ in range(count):
        start = end
        while array[start] in _BETWEEN:
            start += 1
        line += array.count("\n", end, start)
        yield line
        _, end = decoder.raw_decode(array, start)
        line += array.count("\n", start, end)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, name: str, number: int) -> Any:
    """The value of JSON that begins at a line."""
    try:
        value = from_json(text)
        if "\\u" in text:  # half of a surrogate pair is no text
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        raise AlignvecError(f"{name}, line {line}: not JSON: {error.msg}") from None
    except UnicodeEncodeError:
        raise AlignvecError(f"{name}, line {number}: half of a surrogate pair") from None
    except RecursionError:
        raise AlignvecError(f"{name}, line {number}: nested too deep") from None
    except ValueError as error:
        said = "a number of too many digits" if "int_max_str" in str(error) else error
        raise AlignvecError(f"{name}, line {number}: {said}") from None
    return value


def from_json(text: str) -> Any:
    """The value of JSON in which every object has a key once: which one counts, readers differ.

    Raises:
        ValueError: it is none, or a key comes twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{twice}' comes twice in one object; keep one of them")
    return found


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table by the names in its first line. An empty cell is an absent field."""
    csv.field_size_limit(_LONGEST_CELL)
    begun: list[int] = []  # the lines with text that the reader took since the last row

    def read() -> Iterator[str]:
        for number, text in _lines(path):
            if text.strip():
                begun.append(number)
            yield text

    texts = read()
    head = next((text for text in texts if text.strip()), "")
    delimiter = max(",;\t", key=head.count)  # sheets write what is usual where they run
    if "\r" in head.rstrip("\r\n"):
        raise AlignvecError(f"{path.name}: lines end in CR alone; save them with other line ends")
    reader = csv.DictReader(itertools.chain([head], texts), delimiter=delimiter, strict=True)
    names = _header(path.name, reader)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AlignvecError(f"{path.name}: the column '{twice}' comes twice")
    begun.clear()
    try:
        for row in reader:
            place = f"{path.name}, line {begun[0]}"
            begun.clear()
            if None in row:
                raise AlignvecError(f"{place}: more cells than the table has columns")
            yield place, {name: _cell(f"{place}: field '{name}'", row[name]) for name in names}
    except csv.Error as error:
        line = begun[0] if begun else reader.line_num
        raise AlignvecError(f"{path.name}, line {line}: no row of a table: {error}") from None


def _header(name: str, reader: csv.DictReader[str]) -> list[str]:
    try:
        return list(reader.fieldnames or [])
    except csv.Error as error:
        raise AlignvecError(f"{name}, line 1: no header of a table: {error}") from None


def _cell(place: str, text: str | None) -> Any:
    """A cell's text. Messages in it are JSON; what else a programme may make of them is no text."""
    begin = text and _MESSAGES.match(text)
    if not begin:
        return text or None
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        if not begin[1]:  # a text in braces
            return text
        raise AlignvecError(
            f"{place} looks like messages, but is not JSON; save the data as JSON Lines or Parquet"
        ) from None
    if isinstance(found, dict):  # one message
        return [found] if {"role", "content"} <= found.keys() else text
    return found


def _dataset_rows(source: str, path: str, **options: Any) -> Iterator[tuple[str, Any]]:
    # An extra; text files are read without it.
    from datasets import ClassLabel, load_dataset_builder, load_from_disk

    try:
        if (Path(path) / "state.json").exists():
            dataset: Any = load_from_disk(path)
        elif (Path(path) / "dataset_dict.json").exists():
            parts = load_from_disk(path)
            if "train" not in parts:
                raise AlignvecError(
                    f"{source} has no part 'train', but {', '.join(parts)}: give the folder of one"
                )
            dataset = parts["train"]
        elif glob.has_magic(path):
            raise AlignvecError(
                f"{source}: [ ] * and ? in the name of a folder stand for other names where "
                "datasets reads it; call it otherwise"
            )
        else:
            builder = load_dataset_builder(path, **options)
            _tell_left_out(Path(path), builder.config.data_files)
            dataset = builder.as_streaming_dataset(split="train")
        kinds = (dataset.features or {}).items()
        classes = {name: kind.names for name, kind in kinds if isinstance(kind, ClassLabel)}
        of_text = dataset.info.builder_name == "csv"
        for number, row in enumerate(dataset, start=1):
            place = f"{source}, row {number}"
            for name, names in classes.items():
                if row[name] is not None:
                    row[name] = names[row[name]] if row[name] >= 0 else None
            if of_text:
                row = {
                    name: _cell(f"{place}: field '{name}'", value)
                    if isinstance(value, str)
                    else value
                    for name, value in row.items()
                }
            yield place, row
    except AlignvecError:
        raise
    except Exception as error:  # whatever the file format's reader raises
        text = re.sub(r" \(\w+\)$", "", " ".join(str(error).split())[:200])  # a class of Python's
        if text.startswith(("Bad split", "Unknown split")):
            text += "; records are read of 'train': give the file of another split by its own path"
        raise AlignvecError(f"{source} cannot be read as a dataset: {text}") from error


def _tell_left_out(folder: Path, read: Mapping[str, Sequence[str]] | None) -> None:
    """Of a folder with files of several formats datasets reads one, the most frequent.

    Args:
        read: part -> the files that are read.
    """
    kinds = {Path(file).suffix.lower() for files in (read or {}).values() for file in files}
    left = [
        path.name
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.suffix.lower() in {*_JSON, *_TABLES, *_COLUMNS} - kinds
    ]
    if left:
        logger.warning(
            "%s: files of one format are read (%s); left out: %s",
            folder, ", ".join(sorted(kinds)), ", ".join(left),
        )  # fmt: skip
