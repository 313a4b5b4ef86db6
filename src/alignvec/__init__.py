"""alignvec: preferences as knobs on a language model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignvec.errors import AlignvecError
    from alignvec.knobs import KnobModel
    from alignvec.vector import AlignmentVector

__all__ = ["AlignmentVector", "AlignvecError", "KnobModel"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import alignvec` stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'alignvec' has no attribute '{name}'")
    import importlib

    modules = {"AlignmentVector": "vector", "AlignvecError": "errors", "KnobModel": "knobs"}
    return getattr(importlib.import_module(f"alignvec.{modules[name]}"), name)
