"""A failure is one line on stderr and a fitting exit code; a traceback only with --debug."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from typer.core import TyperGroup

from alignvec.errors import AlignvecError, printable

_LONGEST = 1000  # characters, a screen at most


class OneLineErrors(TyperGroup):
    """The commands, with what goes wrong in them told in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("standalone_mode", True):  # click's word for: exceptions are the caller's
            return super().main(*args, **kwargs)
        try:
            return super().main(*args, **kwargs)
        except AlignvecError as error:
            _fail(str(error), error)
        except KeyboardInterrupt:
            sys.exit(130)
        except ModuleNotFoundError as error:
            _fail(f"this needs {error.name}; install alignvec[all]", error)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            _fail(f"{error.strerror or error}{where}", error)
        except Exception as error:
            place = Path(traceback.extract_tb(error.__traceback__)[-1].filename).stem
            what = f": {error}" if " " in str(error) else ""
            _fail(
                f"this is a fault of alignvec, in {place}{what}; alignvec --debug ... shows where, "
                "please report it",
                error,
            )


class Once(logging.Filter):
    """A remark or a warning is made once, however often there is cause for it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        new = said not in self._said
        self._said.add(said)
        return new


def _fail(message: str, error: BaseException) -> NoReturn:
    if os.environ.get("ALIGNVEC_DEBUG"):
        raise error
    print(error_line(message), file=sys.stderr)
    sys.exit(1)


def error_line(message: str) -> str:
    """The one line of a failure. A file may have put anything into it: nothing of that may turn
    the terminal's colours, move its cursor or fill its screen.
    """
    line = "error: " + printable(" ".join(message.split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
