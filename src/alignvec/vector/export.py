"""A low-rank vector as a LoRA adapter for other tools: PEFT (and with it vLLM), llama.cpp."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from alignvec.base.architecture import Architecture
from alignvec.base.model_weights import ModelWeights
from alignvec.base.source import find_base
from alignvec.errors import AlignvecError, check_known
from alignvec.files import atomic_folder, check_free
from alignvec.vector.adapter import write_adapter
from alignvec.vector.adapter_config import NEVER_ASKED
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank
from alignvec.vector.experts import completed, of_experts
from alignvec.vector.gguf import write_gguf

FORMATS = ("peft", "gguf")
_ROUTERS = (".router", ".gate")  # layers of their own kind in some models
# The base says whether PEFT takes these, and whether for what they are.
_DOUBTFUL = re.compile(r"(\.dt_proj|\.router|\.gate)\.weight$|\.shared_experts?\.")


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
        base: the vector's base, for gguf and of experts; by default what the vector names.

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
        return write_gguf(vector, factored, out, _base_of(vector, base), overwrite)
    parameters: list[str] = []
    if (known := _architecture(vector, base)) is not None:
        factored = completed(known, factored)
        modules = {name: name.removesuffix(".weight") for name in factored}
        for name, module in modules.items():
            if module.endswith(NEVER_ASKED) and known.reads_past(module):
                raise AlignvecError(
                    f"{name} is read by the model without calling its layer, so that PEFT's "
                    "factors would do nothing there; fold the vector"
                )
            if module.endswith(_ROUTERS) and not known.peft_takes(module):
                raise AlignvecError(
                    f"{name} is of a module that PEFT puts no factors on; fold the vector"
                )
        parameters = [n for n, module in modules.items() if known.peft_takes_for_expert(module)]
    with atomic_folder(out, overwrite) as partial:
        write_adapter(partial, vector.base.id, factored, vector.dtype, parameters)
    return out


def _architecture(vector: AlignmentVector, base: str | None) -> Architecture | None:
    """Of the base, where there may be a question to it; of other vectors only if it lies here.

    Raises:
        AlignvecError: see `_base_of`.
    """
    names = vector.deltas
    if base or of_experts(names) or any(_DOUBTFUL.search(name) for name in names):
        return _base_of(vector, base).architecture
    if not Path(vector.base.id).is_dir():
        return None
    with suppress(AlignvecError):
        return _base_of(vector, base).architecture
    return None


def _base_of(vector: AlignmentVector, base: str | None) -> ModelWeights:
    """The vector's own base: a folder of that name may be another one.

    Raises:
        AlignvecError: it is not there, or what is there is another model.
    """
    given = base or vector.base.id
    option = "" if base else "; give the vector's base with --base"
    try:
        weights = ModelWeights(find_base(given))
    except AlignvecError as error:
        raise AlignvecError(f"{error}{option}") from None
    if not vector.base.is_of(weights):
        raise AlignvecError(
            f"{given} is not the base of '{vector.name}' ({vector.base.id}): the fingerprints "
            f"differ{option or '; give its own with --base'}"
        )
    return weights
