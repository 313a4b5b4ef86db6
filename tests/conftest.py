"""Tiny random models of several architectures, as folders like any checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from tqdm import tqdm
from typer.testing import CliRunner

# What tries the server as its clients do is an extra of its own (`clients`).
collect_ignore = (
    [] if find_spec("schemathesis") else ["serve/test_conformance.py", "serve/test_knob_routes.py"]
)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VOCABULARY = 96
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build(architecture: str, folder: Path, seed: int = 0, **changes) -> Path:
    """Write a random checkpoint with a tokenizer."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(seed)
    shape = {**TINY, "tie_word_embeddings": False, **changes}
    if architecture == "gpt2":
        config = hf.GPT2Config(
            vocab_size=shape["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
    else:
        extra = {"head_dim": 8} if architecture == "gemma" else {}
        if architecture in MOE:
            experts = "num_local_experts" if architecture == "mixtral" else "num_experts"
            extra = {experts: 4, "num_experts_per_tok": 2}
        if architecture == "mamba":
            shape = {k: shape[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
        config = hf.AutoConfig.for_model(architecture, **shape, **extra)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # random logits far enough apart to tell likelihoods
    model.save_pretrained(folder)

    words = [chr(code) for code in range(32, 127)]
    tokens = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", *words][:VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"], model_max_length=512,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


ARCHITECTURES = ["llama", "mistral", "qwen2", "gemma", "gpt2", "phi"]
MOE = ["mixtral", "olmoe"]


@pytest.fixture(autouse=True)
def same_on_every_cpu(request, monkeypatch):
    """Tiny models are trained and measured in float32, whatever the CPU would do by default.

    In bfloat16 a model of two random blocks ends up elsewhere than in float32, and only some CPUs
    have it. Real models run in the dtype that their users get.
    """
    if request.node.get_closest_marker("real"):
        return
    import torch

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny("llama")` is the folder of a tiny random Llama; `seed=1` another one."""
    made: dict[tuple, Path] = {}

    def get(architecture: str = "llama", seed: int = 0, **changes) -> Path:
        key = (architecture, seed, repr(sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"{architecture}-{seed}"
            made[key] = build(architecture, folder, seed, **changes)
        return made[key]

    return get


def build_multimodal(kind: str, folder: Path) -> Path:
    """Write a random checkpoint of a model that reads images as well."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    text = {**TINY, "head_dim": 8}
    sees = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    if kind == "gemma3":
        config = hf.Gemma3Config(
            text_config=text, vision_config=sees, mm_tokens_per_image=4,
            image_token_index=95, boi_token_index=94, eoi_token_index=93,
        )  # fmt: skip
        model = hf.Gemma3ForConditionalGeneration(config)
    else:
        config = hf.LlavaConfig(
            text_config=hf.AutoConfig.for_model("llama", **text),
            vision_config=hf.AutoConfig.for_model("clip_vision_model", **sees, projection_dim=8),
            image_token_index=95,
        )
        model = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(build("llama", folder.with_name("text"))).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory):
    """`multimodal("gemma3")` is the folder of a tiny random Gemma 3 that sees; "llava" another."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_multimodal(kind, tmp_path_factory.mktemp("sees") / kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def nudged(tiny, tmp_path_factory):
    """An "aligned" copy of a tiny model: its weights with noise, some moved close to zero."""

    def get(architecture: str = "llama", dtype: str = "float32", **changes) -> Path:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = tiny(architecture, **changes)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
                flat = parameter.view(-1)
                flat[::17] *= 1e-4 * torch.rand_like(flat[::17])
        folder = tmp_path_factory.mktemp("nudged") / f"{architecture}-{dtype}"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        return folder

    return get


def write_records(path: Path, count: int, **changes) -> Path:
    lines = [
        {
            "id": f"r{i}",
            "domain": "tea",
            "topic": "leaf",
            "persona": "someone",
            "query": f"how long to steep tea {i}?",
            "avoidance": f"ask a shop {i}",
            "generic": f"a few minutes {i}",
            "expert": f"{i} s at 80 C",
            **changes,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def records(tmp_path):
    return write_records(tmp_path / "tea.jsonl", 12)


def run(*arguments, code=0):
    """A command in this process, as `alignvec ARGUMENTS`: what it printed, checked to exit so."""
    from alignvec.cli.app import app

    clean = {"ALIGNVEC_DEBUG": None, "TQDM_DISABLE": os.environ.get("TQDM_DISABLE")}
    done = CliRunner().invoke(app, [*map(str, arguments)], prog_name="alignvec", env=clean)
    assert done.exit_code == code, done.stderr
    return done


def run_process(*arguments, code=0, **options):
    """The same as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "alignvec", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def refused(*arguments, code=1, run=run, **options):
    """The one line that a failure prints."""
    done = run(*arguments, code=code, **options)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def write_low_rank(base, folder, seed=0, calibration=None):
    """Write a random vector of rank 4 in each of a base's projections, and nowhere else."""
    import torch

    from alignvec import AlignmentVector
    from alignvec.base.identity import base_id
    from alignvec.base.model_weights import ModelWeights
    from alignvec.vector.delta import LowRank

    weights, chance = ModelWeights(base), torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=chance) * 0.2

    deltas = {}
    for name in weights:
        if name.endswith("proj.weight"):
            rows, columns = weights.shape(name)
            deltas[name] = LowRank(random(4, columns), random(rows, 4))
    vector = AlignmentVector(deltas, base_id(str(base)), folder.name, calibration=calibration)
    vector.save_pretrained(folder)
    return folder


@contextmanager
def watching(call):
    """Calls call(done, total) as bars of known length move; it may raise, as Ctrl+C does."""

    class Watched(tqdm):
        def update(self, n=1):
            self.n += n
            if self.total is not None:
                call(self.n, self.total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignvec.progress.tqdm", Watched)
        yield


@pytest.fixture
def browser():
    """Makes headless browsers; skipped where there is no Chromium."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not (driver and chromium):
        pytest.skip("no chromium and chromedriver")
    from selenium import webdriver

    opened = []

    def open_one():
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        opened.append(webdriver.Chrome(options, webdriver.ChromeService(driver)))
        return opened[-1]

    yield open_one
    for one in opened:
        one.quit()
