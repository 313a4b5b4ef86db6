"""Everything that was ever written, on disk before anybody builds on it.

One JSON object a line, appended and flushed to the disk; a killed run loses what was in flight and
nothing else, and a line that a kill cut in half is cut off at the next start. A text is found by
the hash of what was asked, so no run pays for it again. Answers that are none to use, and requests
that the writer refuses, are kept too, with what they cost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from alignvec.data.synthesis.chat import Chat, Completion, Task
from alignvec.errors import AlignvecError
from alignvec.files import check_free
from alignvec.system import lock


@dataclass(frozen=True)
class Refusal:
    """A request that the writer does not take; it has read it all the same.

    Attributes:
        final: other seeds for the same messages would fare alike.
    """

    reason: str
    prompt_tokens: int = 0
    final: bool = True


_START = b'{"key": "'  # of every line; then a hash in 64 digits


class Journal:
    """An append-only log of answers. In memory it keeps where each text lies, not the text.

    Attributes:
        prompt_tokens, completion_tokens: of all that is in it.
        estimated: answers whose writer did not count them.
    """

    def __init__(self, path: Path) -> None:
        """Raises: AlignvecError: the file is no journal, or another process has it open."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise AlignvecError(
                f"{path} is no file to write a journal to: {error.strerror}"
            ) from None
        try:
            self._lock = lock(path)
        except BlockingIOError:
            self._file.close()
            raise AlignvecError(f"another process is writing {path}; wait for it") from None
        self._read = path.open("rb")
        self.prompt_tokens = self.completion_tokens = self.estimated = 0
        self._at: dict[bytes, int] = {}  # key -> offset of its line
        self._turned_away: dict[bytes, Refusal] = {}
        end = 0
        try:
            for offset, line in self._lines():
                end = offset + len(line)
                self._note(offset, line)
            self._cut(end)
        except AlignvecError:
            self.close()
            raise
        self._end = end
        self._lines_to_write: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Of texts to use."""
        return len(self._at)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def __getitem__(self, key: bytes) -> Completion:
        self._read.seek(self._at[key])
        return Completion(**json.loads(self._read.readline())["completion"])

    def key(self, task: Task, chat: Chat) -> bytes | None:
        """Where the text of a task is, under whichever seed it was had; None if it is not here."""
        keys = (key_of(one, chat) for one in task.tries(chat.temperature))
        return next((key for key in keys if key in self._at), None)

    def text(self, task: Task, chat: Chat) -> Completion | None:
        """What was written for a task."""
        key = self.key(task, chat)
        return self[key] if key else None

    def turned_away(self, key: bytes) -> Refusal | None:
        """Why what was asked has no text to use, if it was asked and answered."""
        return self._turned_away.get(key)

    async def add(self, key: bytes, outcome: Completion | Refusal) -> None:
        """Keep an answer. Returns when it is on the disk."""
        kind = "refused" if isinstance(outcome, Refusal) else "completion"
        content = {kind: asdict(outcome)}
        text = json.dumps({"key": key.hex(), **content}, ensure_ascii=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"  # as JSON escapes half of a pair
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

    def _cut(self, end: int) -> None:
        """Cut off a line that a kill cut in half, if it is one of ours.

        Raises:
            AlignvecError: it is not.
        """
        self._read.seek(end)
        start, digits = self._read.read(len(_START)), self._read.read(64)
        if not _START.startswith(start) or digits.strip(b"0123456789abcdef"):
            raise AlignvecError(f"{self.path} is no journal of texts; move it away")
        self._file.truncate(end)

    def _note(self, offset: int, line: bytes) -> None:
        answer: Completion | Refusal
        try:
            entry = json.loads(line)
            key = bytes.fromhex(entry["key"])
            if "failure" in entry:  # as it was written once: nothing to build on
                return
            if "refused" in entry:
                answer = Refusal(**entry["refused"])
            else:
                answer = Completion(**entry["completion"])
            self.prompt_tokens += answer.prompt_tokens
        except (ValueError, KeyError, TypeError):
            number = self.path.read_bytes()[:offset].count(b"\n") + 1
            raise AlignvecError(
                f"{self.path}, line {number}: no entry of a journal; delete that line, "
                "or move the file away"
            ) from None
        if isinstance(answer, Refusal):
            self._turned_away[key] = answer
            return
        self.completion_tokens += answer.completion_tokens
        self.estimated += answer.estimated
        if answer.rejected:
            self._turned_away[key] = Refusal(answer.rejected, final=answer.given_up)
        else:
            self._at[key] = offset

    def close(self) -> None:
        self._read.close()
        self._file.close()
        os.close(self._lock)


@contextmanager
def journal_of(out: Path, overwrite: bool = False) -> Iterator[Journal]:
    """The journal of an output, beside it. An output that has one may be completed.

    Raises:
        AlignvecError: `out` is there without a journal and may not be overwritten; see `Journal`.
    """
    path = out.with_name(f"{out.name}.journal")
    new = not path.exists()
    if new:
        check_free(out, overwrite)
    journal = Journal(path)
    try:
        yield journal
    finally:
        empty = not path.stat().st_size
        journal.close()
        if new and empty:
            path.unlink()


def key_of(task: Task, chat: Chat) -> bytes:
    """What a text depends on, hashed."""
    asked = [chat.name, chat.temperature, task.messages, task.max_tokens, task.sample]
    return hashlib.sha256(json.dumps(asked).encode()).digest()
