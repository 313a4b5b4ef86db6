"""How tokens are spelled: the bytes of each, which alone need not be whole characters."""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling:
    """The bytes of a tokenizer's tokens, as they stand in a text: with the space before a word,
    which a decoder takes away from a token that it is given alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Any = tokenizer.backend_tokenizer
        decoder = repr(self._backend.decoder)
        self._bytes = {char: byte for byte, char in bytes_to_unicode().items()}
        self._by_bytes = "ByteLevel" in decoder
        self._by_words = "ByteFallback" in decoder or "Metaspace" in decoder
        self._added = self._backend.get_added_tokens_decoder()

    def __call__(self, token: int) -> bytes:
        """Of a token of the model; empty of one that the tokenizer has not."""
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return str(piece).encode()
        if self._by_bytes and all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece)
        if self._by_words:
            single = _BYTE.fullmatch(piece)
            return bytes([int(single[1], 16)]) if single else piece.replace("\u2581", " ").encode()
        return str(self._backend.decode([token], skip_special_tokens=False)).encode()


def shown(spelled: bytes) -> str:
    """Bytes as a text; where they are no whole characters, as OpenAI writes them: `\\xf0\\x9f`."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in spelled)
