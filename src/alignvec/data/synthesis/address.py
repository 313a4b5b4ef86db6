"""Where an endpoint is, as people paste it, and what of that may be said: no keys, no passwords."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from alignvec.errors import AlignvecError

_OPENAI = "https://api.openai.com/v1"
_LEAST = 8  # characters of a secret; what is shorter may be a word, as Ollama's key is
_HARMLESS = {"api-version", "version"}  # of a query


class Address:
    """An endpoint's URL and the key to it.

    Attributes:
        url: up to and with `/v1`, without a query.
        query: what every request has behind it, as Azure's `api-version`.
        headers: that a server wants besides OpenAI's own: Azure looks for its key in another one.
        shown: for messages.
    """

    def __init__(self, url: str | None, key: str) -> None:
        """Raises: AlignvecError: it is no URL, or the key is none that a header could hold."""
        given = (url or _OPENAI).strip()
        try:
            parts = urlsplit(given)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme not in ("http", "https") or re.search(r"[\s\x00-\x1f]", given):
            raise AlignvecError(
                "the endpoint is no URL; write it as in http://localhost:8000/v1"
            ) from None
        self.key = key.strip()
        if not self.key.isascii() or not self.key.isprintable():
            raise AlignvecError("OPENAI_API_KEY holds characters that no key has; set it anew")
        path = re.sub(r"((/chat)?/completions)?/*$", "", parts.path)
        server = f"[{host}]" if ":" in host else host
        server += f":{port}" if port else ""
        self.shown = "OpenAI" if url is None else f"{parts.scheme}://{server}{path}"
        user, at, _ = parts.netloc.rpartition("@")
        self.url = f"{parts.scheme}://{user}{at}{server}{path}"
        self.query = dict(parse_qsl(parts.query))
        azure = host.endswith(".azure.com") or "api-version" in self.query
        self.headers = {"api-key": self.key} if azure and self.key else {}
        self._secrets = _spellings(
            [self.key, parts.password or ""]
            + [value for name, value in self.query.items() if name not in _HARMLESS]
        )

    def without_secrets(self, text: str) -> str:
        """A server may say what it was sent, and the text may be kept or shown to others."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _spellings(secrets: Iterable[str]) -> list[str]:
    """Of each secret, as it is and as a URL has it; the longest first, to leave no rest."""
    found = {way(one) for one in secrets for way in (str, unquote, quote, lambda s: quote(s, ""))}
    return sorted((one for one in found if len(one) >= _LEAST), key=len, reverse=True)
