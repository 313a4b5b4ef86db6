"""A method with a function around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def around(owner: type, name: str, function: Callable[..., Any]) -> None:
    """Have `owner.name(...)` call `function(method, ...)`; once, however often it is asked for."""
    method = getattr(owner, name)
    if getattr(method, "alignvec", False):
        return
    bound = isinstance(owner.__dict__.get(name), classmethod)  # it brings its class itself

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(method, *args, **kwargs)

    called.alignvec = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(called) if bound else called)
