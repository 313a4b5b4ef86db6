"""The models of a study, one at a time: two of them may be too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from alignvec.evaluate.measurable import Measurable
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector


class Running(Measurable, Protocol):
    """A model that holds memory until it is told to end."""

    def close(self) -> None:
        """End it."""


# From a base, its vectors by knob, and whether a base that is not theirs will do.
Engine = Callable[[str, Mapping[str, AlignmentVector], bool], Running]


class Models:
    """Loads the base of a study, or another stage of it, with knobs."""

    def __init__(
        self, base: str, dtype: str | None, device: str | None, engine: Engine | None
    ) -> None:
        """Args: engine: runs what only writes and scores; None: transformers."""
        self._base, self._dtype, self._device, self._engine = base, dtype, device, engine
        self._kept: tuple[Any, Any] | None = None
        self._close: Callable[[], None] | None = None

    def live(
        self, vectors: Mapping[str, Path], stage: str | None = None, mode: str = "auto"
    ) -> KnobModel:
        """A model whose passes can be looked into.

        Args:
            stage: another model of the same shape, that the vectors were not made on.
        """

        def load() -> KnobModel:
            base = stage or self._base
            return KnobModel.from_pretrained(
                base, vectors, self._dtype, self._device, stage is None, mode
            )

        found: KnobModel = self._keep((mode, stage, _key(vectors)), load)
        return found

    def measured(self, vectors: Mapping[str, Path], stage: str | None = None) -> Measurable:
        """A model that writes and scores, on the engine; full vectors, which an engine has no slots
        for, are measured on transformers.
        """
        engine = self._engine
        if engine is None:
            return self.live(vectors, stage)
        read = {knob: AlignmentVector.from_pretrained(path) for knob, path in vectors.items()}
        if any(one.kind == "full" for one in read.values()):
            return self.live(vectors, stage)

        def load() -> Running:
            model = engine(stage or self._base, read, stage is not None)
            self._close = model.close
            return model

        found: Running = self._keep(("engine", stage, _key(vectors)), load)
        return found

    def let_go(self) -> None:
        """Of the model that is kept, and of its memory."""
        if self._close is not None:
            self._close()
        self._kept = self._close = None

    def _keep(self, key: Any, load: Callable[[], Any]) -> Any:
        if self._kept is None or self._kept[0] != key:
            self.let_go()
            self._kept = key, load()
        return self._kept[1]


def _key(vectors: Mapping[str, Path]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((knob, str(path)) for knob, path in vectors.items()))
