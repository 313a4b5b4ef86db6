"""Everything that was ever written, on disk before anybody builds on it.

One JSON object a line, appended and flushed to the disk; a killed run loses what was in flight and
nothing else, and a line that a kill cut in half is cut off at the next start. A text is found by
the hash of what was asked, so no run pays for it again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from alignvec.data.synthesis.chat import Chat, Completion, Task
from alignvec.errors import AlignvecError
from alignvec.files import check_free


class Journal:
    """An append-only log of completions. In memory it keeps where each one lies, not its text.

    Attributes:
        prompt_tokens, completion_tokens: of all that is in it.
    """

    def __init__(self, path: Path) -> None:
        """Raises: AlignvecError: the file is no journal, or another process has it open."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise AlignvecError(f"another process is writing {path}; wait for it") from None
        self._read = path.open("rb")
        self.prompt_tokens = self.completion_tokens = 0
        self._at: dict[bytes, int] = {}  # key -> offset of its line
        self._failed: dict[bytes, str] = {}
        end = 0
        for offset, line in self._lines():
            end = offset + len(line)
            self._note(offset, line)
        self._file.truncate(end)  # a line that was cut in half
        self._end = end
        self._lines_to_write: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def __getitem__(self, key: bytes) -> Completion:
        self._read.seek(self._at[key])
        return Completion(**json.loads(self._read.readline())["completion"])

    def failure(self, key: bytes) -> str | None:
        """Why a text could not be had, the last time that it was tried."""
        return self._failed.get(key)

    async def add(self, key: bytes, outcome: Completion | str) -> None:
        """Keep a completion, or the reason why there is none. Returns when it is on the disk."""
        content = (
            {"failure": outcome} if isinstance(outcome, str) else {"completion": asdict(outcome)}
        )
        line = json.dumps({"key": key.hex(), **content}, ensure_ascii=False).encode() + b"\n"
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines_to_write.append((line, written))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await written

    async def _flush(self) -> None:
        """Everything that waits goes to the disk together."""
        while self._lines_to_write:
            waiting, self._lines_to_write = self._lines_to_write, []
            try:
                await asyncio.to_thread(self._append, b"".join(line for line, _ in waiting))
            except OSError as error:
                refusal = AlignvecError(f"{self.path} cannot be written: {error.strerror}")
                for _, written in waiting:
                    if not written.done():
                        written.set_exception(refusal)
                continue
            for line, written in waiting:
                self._note(self._end, line)
                self._end += len(line)
                if not written.done():
                    written.set_result(None)

    def _append(self, content: bytes) -> None:
        """Raises: OSError: the disk is full; the file is then as it was before."""
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line) of every whole line."""
        offset = 0
        for line in self._read:
            if not line.endswith(b"\n"):
                return
            yield offset, line
            offset += len(line)

    def _note(self, offset: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key = bytes.fromhex(entry["key"])
            completion = Completion(**entry["completion"]) if "completion" in entry else None
            reason = "" if completion else str(entry["failure"])
        except (ValueError, KeyError, TypeError):
            number = self.path.read_bytes()[:offset].count(b"\n") + 1
            raise AlignvecError(
                f"{self.path}, line {number}: no entry of a journal; delete that line, "
                "or move the file away"
            ) from None
        if completion is None:
            self._failed[key] = reason
            return
        self._at[key] = offset
        self._failed.pop(key, None)
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens

    def close(self) -> None:
        self._read.close()
        self._file.close()


@contextmanager
def journal_of(out: Path, overwrite: bool = False) -> Iterator[Journal]:
    """The journal of an output, beside it. An output that has one may be completed.

    Raises:
        AlignvecError: `out` is there without a journal and may not be overwritten; see `Journal`.
    """
    path = out.with_name(f"{out.name}.journal")
    check_free(out, overwrite or path.exists())
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def key_of(task: Task, chat: Chat) -> bytes:
    """What a text depends on, hashed."""
    asked = [chat.name, chat.temperature, task.messages, task.max_tokens, task.sample]
    return hashlib.sha256(json.dumps(asked).encode()).digest()
