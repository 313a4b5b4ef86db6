"""The prompts that writers get: text files with a version, a system part and a user part.

`$name` is filled in. A folder with a file of the same name may stand in for the package's own.
"""

from __future__ import annotations

import string
from importlib import resources
from pathlib import Path

import yaml

from alignvec.errors import AlignvecError

_FOLDER = Path(str(resources.files("alignvec.data"))) / "prompts"
KINDS = ("persona", "query", "response")
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
        if head or not version.strip().isdigit() or lines.count("---") != 1:
            raise AlignvecError(
                f"{path} is no prompt: '# version 1', the system part, '---', the user part"
            )
        self.version, cut = int(version), lines.index("---")
        self._parts = [
            string.Template("\n".join(part).strip()) for part in (lines[1:cut], lines[cut + 1 :])
        ]
        self._path = path

    def messages(self, **values: object) -> list[Message]:
        """The system and the user message.

        Raises:
            AlignvecError: the file has a place that nothing is known for.
        """
        try:
            system, user = (part.substitute(values) for part in self._parts)
        except (KeyError, ValueError) as error:
            raise AlignvecError(f"{self._path}: nothing to fill in for {error}") from None
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]
