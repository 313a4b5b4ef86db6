"""A low-rank vector as a LoRA adapter for other tools: PEFT (and with it vLLM), llama.cpp."""

from __future__ import annotations

from pathlib import Path

from alignvec.errors import AlignvecError, check_known
from alignvec.files import atomic_folder, check_free
from alignvec.vector.adapter import write_adapter
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank
from alignvec.vector.gguf import write_gguf

FORMATS = ("peft", "gguf")


def export(
    vector: AlignmentVector,
    form: str,
    out: Path,
    base: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `vector` as an adapter with scaling 1: the tool's own scale is lambda.

    Args:
        form: "peft" (a folder) or "gguf" (a file).
        base: for gguf, where the base's config is; by default the base that the vector names.

    Raises:
        AlignvecError: an unknown format, a vector that is not wholly low-rank, or an architecture
            that cannot be written for llama.cpp.
    """
    check_known("format", form, FORMATS)
    check_free(out, overwrite)
    factored: dict[str, LowRank] = {}
    for name, delta in vector.deltas.items():
        if not isinstance(delta, LowRank):
            raise AlignvecError(
                f"{name} is dense, and an adapter holds only low-rank factors; first: alignvec "
                "compress VECTOR --rank 16 --drop-rest -o OUT"
            )
        factored[name] = delta
    if not factored:
        raise AlignvecError("the vector is empty; there is no adapter to write")
    if form == "gguf":
        return write_gguf(vector, factored, out, base, overwrite)
    with atomic_folder(out, overwrite) as partial:
        write_adapter(partial, vector.base.id, factored, vector.dtype)
    return out
