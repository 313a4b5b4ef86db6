"""The prompts that writers get: text files with a version and parts between lines of `---`.

The first part is the system message, the last one what is asked; between them lie examples, a
user's turn and the assistant's in turn. `$name` is filled in. A folder with a file of the same name
may stand in for the package's own.
"""

from __future__ import annotations

import itertools
import string
from importlib import resources
from pathlib import Path

import yaml

from alignvec.errors import AlignvecError

_FOLDER = Path(str(resources.files("alignvec.data"))) / "prompts"
KINDS = ("persona", "query", "response", "judge")
# What CreatePersona spreads its people over: trait -> values.
PEOPLE: dict[str, list[str]] = yaml.safe_load((_FOLDER / "people.yaml").read_text("utf-8"))
Message = dict[str, str]


class Prompt:
    """A prompt with places to fill.

    Attributes:
        version: of its file.
    """

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        """Raises: AlignvecError: the file is missing or is not of that form."""
        path = (folder or _FOLDER) / f"{kind}.txt"
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AlignvecError(f"{path} cannot be read: {error}") from None
        head, _, version = (lines[0] if lines else "").partition("# version ")
        parts = "\n".join(lines[1:]).split("\n---\n")
        if head or not version.strip().isdigit() or len(parts) % 2:
            raise AlignvecError(
                f"{path} is no prompt: '# version 1', then parts between lines of '---': system, "
                "examples (user, assistant, ...), user"
            )
        self.version = int(version)
        self._parts = [string.Template(part.strip()) for part in parts]
        self._path = path

    def messages(self, **values: object) -> list[Message]:
        """System, examples, user.

        Raises:
            AlignvecError: the file has a place that nothing is known for.
        """
        try:
            texts = [part.substitute(values) for part in self._parts]
        except (KeyError, ValueError) as error:
            raise AlignvecError(f"{self._path}: nothing to fill in for {error}") from None
        roles = [
            "system",
            *itertools.islice(itertools.cycle(("user", "assistant")), len(texts) - 1),
        ]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
