"""A spectrum: the levels of a preference, from low to high, and what a writer must know of them.

It is a YAML file. Five ship with the package (`SHIPPED`): the three domains of the paper, and two
templates for spectra of another kind, tone and detail.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignvec.data.forms import ABOUT, ASKED
from alignvec.errors import AlignvecError
from alignvec.files import validated

_FOLDER = Path(str(resources.files("alignvec.data"))) / "spectra"
SHIPPED = sorted(file.stem for file in _FOLDER.glob("*.yaml"))


class Level(BaseModel):
    """One response style.

    Attributes:
        instruction: what a response of this level does, told to whoever writes it.
        declines: a response of this level refuses; of the others none does.
        words: the least and the most words, where this level's differ from the spectrum's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    instruction: str = Field(min_length=1)
    declines: bool = False
    words: tuple[int, int] | None = None


class Example(BaseModel):
    """A query with a response at each level, shown to whoever writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = Field(min_length=1)
    responses: dict[str, str]


class Spectrum(BaseModel):
    """The levels of a domain.

    Attributes:
        domain: goes into every record.
        about: the domain in words, as in "a question about ...".
        language: ISO 639-1 code of queries and responses.
        words: the least and the most words of a response, at every level alike, so that length
            does not give the level away. See `word_range` for scripts without spaces.
        keywords: a persona of whom one of these words is said belongs to the domain; `therap*` is
            any word that begins so.
        topics: of the queries.
        levels: from low to high.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    domain: str = Field(min_length=1)
    about: str = Field(min_length=1)
    language: str = Field(default="en", pattern=r"^[a-z]{2}$")
    words: tuple[int, int] = (40, 70)
    keywords: list[str] = []
    topics: list[str] = Field(min_length=1)
    levels: list[Level] = Field(min_length=2)
    examples: list[Example] = []

    @model_validator(mode="after")
    def _is_consistent(self) -> Spectrum:
        names = self.level_names
        if taken := {*ABOUT, *ASKED}.intersection(names):
            raise ValueError(f"a level cannot be called '{taken.pop()}', as other fields are")
        if len(set(names)) < len(names):
            raise ValueError("two levels share a name")
        if not all(0 < low < high for low, high in map(self.band, names)):
            raise ValueError("words are the least and the most words of a response")
        for example in self.examples:
            if set(example.responses) != set(names):
                raise ValueError(f"an example has a response for each of {', '.join(names)}")
        return self

    @property
    def level_names(self) -> list[str]:
        """From low to high."""
        return [level.name for level in self.levels]

    def band(self, level: str) -> tuple[int, int]:
        """The least and the most words of a response of a level."""
        return next(one.words for one in self.levels if one.name == level) or self.words


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's readers take the last of two equal keys, and a level or a topic list is lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((name for name in names if names.count(name) > 1), None):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"the key '{twice}' comes twice in what begins at line {line}")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_spectrum(name: str) -> Spectrum:
    """A spectrum by the name of a shipped one, or from a YAML file.

    Raises:
        AlignvecError: there is none, or a field is missing or wrong.
    """
    path = _FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    if not path.is_file():
        raise AlignvecError(f"no spectrum '{name}'; a YAML file, or one of {', '.join(SHIPPED)}")
    try:
        content = yaml.load(path.read_text("utf-8-sig"), _EachKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise AlignvecError(f"{path} is not readable YAML: {line}") from None
    return validated(Spectrum, content, path)
