"""Texts that say nearly the same: MinHash over runs of words, found by their hashes."""

from __future__ import annotations

import re

_PERMUTATIONS = 128
_RUN = 3  # words


class NearDuplicates:
    """A set of texts that can be asked for those like another one."""

    def __init__(self, threshold: float = 0.6) -> None:
        """Args: threshold: Jaccard similarity of the runs of words, from which texts are alike."""
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._count = 0

    def add_new(self, text: str) -> bool:
        """Add `text` unless one like it is there; says whether it was new."""
        from datasketch import MinHash

        words = re.findall(r"\w+", text.lower())
        runs = {" ".join(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))}
        hashed = MinHash(num_perm=_PERMUTATIONS, seed=1)
        hashed.update_batch([run.encode() for run in sorted(runs)])
        if self._index.query(hashed):
            return False
        self._index.insert(self._count, hashed)
        self._count += 1
        return True
