"""Hostile files: whatever they hold, a command works or refuses in one line, and soon.

A case is a kind of file and a seed: the file is mutated, one command reads it, the file is put
back. `ALIGNVEC_FUZZ_CASES=5000 pytest tests/test_fuzz.py` runs more of each kind, and
`ALIGNVEC_FUZZ_FIRST=5000` other ones; a failure names the seeds that lead to it.
"""

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import struct
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from math import prod
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command

from alignvec.cli.app import app
from alignvec.cli.failure import error_line
from alignvec.errors import AlignvecError
from alignvec.vector import adapter_config
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import LowRank
from alignvec.vector.hub import model_card

CASES = int(os.environ.get("ALIGNVEC_FUZZ_CASES", "120"))
FIRST = int(os.environ.get("ALIGNVEC_FUZZ_FIRST", "0"))
COMMAND = get_command(app)
SECONDS = 20  # a case takes some milliseconds; a busy machine may need more
MEMORY = 4 * 2**30

DEEP = "@deep@"  # stands for lists in lists, which json itself could not write
NAMES = (
    "../../escaped", "/proc/self/cwd/escaped", "a/b", "a\0b", "a\nb", "\x1b[2J", "\u202eb",
    "\ud800", "x" * 3000, "", ".", "..", "~nobody/x", "$\\frac{$", "[bold]", "__metadata__",
    "model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.Q_PROJ.weight", "model.layers.0.self_attn.q_proj",
    f"layers.{'9' * 5000}.weight", "layers.٣.weight", "model-00002-of-00002.safetensors",
    "base_model.model.model.norm.lora_A.weight", "F64", "I8", "F8_E4M3", "F4", "bfloat16", "gpt2",
    "mistral", "low_rank", "full", "LORA",
)  # fmt: skip
PATTERNS = (
    r"(.|.)*\d", "(.*_)*x", "((.?){1,99}){1,99}z", "(model|.)*(model|.)*!", "[", "(?P<x>",
    "(?i)q.*", "a{999999999}", "((a{9}){9}){9}", "\\1", "q_proj",
    "(.*.*.*.*.*)*y", "((((a*)*)*)*)*b",
)  # fmt: skip
NUMBERS = (
    0, 1, 2, 3, -1, 4, 8, 64, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**12, 10**18,
    10**400, -(10**30), 0.5, -0.5, 1e-320, 3e38, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
VALUES = (
    None, True, False, DEEP, [], {}, [[]], [1, 2], {"a": 1}, ["F32"], [0, 0], [8, 8], [10**12, 0],
    *NAMES, *PATTERNS, *NUMBERS, *NUMBERS,
)  # fmt: skip
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
          "U8": 1, "BOOL": 1, "C64": 8, "U16": 2}  # fmt: skip
EMPTY = ([0], [10**12, 0], [0, 10**12], [2**62, 0, 8], [0, 2**40, 2**40], [2**63, 0], [0] * 70)
FLOATS = tuple(
    struct.pack("<f", value)
    for value in (float("nan"), float("inf"), 3.4e38, -3.4e38, 1e-45, 2.0**20, 0.0)
)


def mutated_bytes(random: Random, source: bytes) -> bytes:
    """Bytes flipped, cut out, put in; the end cut off."""
    result = bytearray(source)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(result) + 1)
        result[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
    if random.random() < 0.2:
        del result[random.randrange(len(result) + 1) :]
    return bytes(result)


def nodes(value: object) -> list[tuple]:
    """(container, key) of everything in a JSON value."""
    found, left = [], [value]
    while left:
        container = left.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                left.append(container[key])
    return found


def change(random: Random, root: dict) -> None:
    """Replace, remove, rename, add, copy or swap something below `root`."""
    container, key = random.choice(nodes(root))
    other, its = random.choice(nodes(root))
    act = random.choice(("replace", "replace", "replace", "remove", "rename", "copy", "swap"))
    if act == "replace":
        alike = [value for value in VALUES if type(value) is type(container[key])]
        container[key] = deepcopy(random.choice(random.choice((VALUES, alike or VALUES))))
    elif act == "copy":
        container[key] = deepcopy(other[its])
    elif act == "swap":
        container[key], other[its] = deepcopy(other[its]), deepcopy(container[key])
    elif container is root:
        return
    elif act == "remove":
        del container[key]
    elif isinstance(container, dict):
        container[random.choice(NAMES + PATTERNS)] = container.pop(key)
    else:
        container.insert(key, deepcopy(random.choice(VALUES)))


def to_json(random: Random, value: object) -> bytes:
    depth = random.choice((50, 300, 700, 950, 100_000))
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    if random.random() < 0.05:  # the same key twice
        text = text.replace("{", '{"dtype": "F32", "r": 0, "name": 1, ', 1)
    return text.encode("utf-8", "surrogatepass")


def mutated_json(random: Random, source: bytes) -> bytes:
    if random.random() < 0.15:
        return mutated_bytes(random, source)
    root = {"": json.loads(source)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change(random, root)
    return to_json(random, root[""])


def mutated_safetensors(random: Random, source: bytes) -> bytes:
    """Sound files of hostile tensors, hostile headers, wrong lengths, spoiled data."""
    length = 8 + int.from_bytes(source[:8], "little")
    header, data = json.loads(source[8:length]), source[length:]
    way = random.random()
    if way < 0.1:
        head = mutated_bytes(random, source[:length])
        return head + data if random.random() < 0.5 else head
    if way < 0.25:  # a NaN, an infinity, something large
        at = 4 * random.randrange(max(1, len(data) // 4))
        count = random.choice((1, 1, 8))
        return source[: length + at] + random.choice(FLOATS) * count + data[at + 4 * count :]
    if way < 0.8:
        header, data = other_tensors(random, header, data)
    if way > 0.7:
        root = {"": header}
        for _ in range(random.randint(1, 2)):
            change(random, root)
        header = root[""]
    text = to_json(random, header)
    wrong = (0, 1, len(text) - 1, len(text) + 1, len(text) + len(data), 10**8, 2**63, 2**64 - 1)
    stated = random.choice(wrong) if random.random() < 0.05 else len(text)
    cut = random.randrange(len(data) + 1) if random.random() < 0.05 else len(data)
    return struct.pack("<Q", stated) + text + data[:cut]


def other_tensors(random: Random, header: dict, data: bytes) -> tuple[dict, bytes]:
    """A header and data that fit each other: other dtypes and shapes, without values, renamed."""
    metadata = header.pop("__metadata__", None)
    tensors = {
        name: [entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]]
        for name, entry in header.items()
    }
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice(sorted(tensors))
        act = random.choice(("retype", "reshape", "empty", "grow", "rename", "swap", "add"))
        dtype, shape, _ = tensors[name]
        if act == "retype":
            tensors[name][0] = random.choice(sorted(WIDTHS))
        elif act == "reshape":
            count = prod(shape)
            tensors[name][1] = random.choice(
                ([count], [1, count], [count, 1], shape[::-1], [1] * 70 + shape, [])
            )
        elif act == "empty":
            tensors[name][1] = random.choice((*EMPTY, [*shape[:-1], 0], [0, *shape[1:]]))
        elif act == "grow":
            tensors[name][1] = [size + random.randint(-1, 1) for size in shape]
        elif act == "rename":
            tensors[random.choice(NAMES)] = tensors.pop(name)
        elif act == "swap":
            other = random.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other], tensors[name]
        else:
            tensors[random.choice(NAMES)] = [dtype, random.choice(EMPTY), b""]
    made: dict = {} if metadata is None else {"__metadata__": metadata}
    end, parts = 0, []
    for name, (dtype, shape, values) in tensors.items():
        size = WIDTHS[dtype] * prod(shape)
        size = size if 0 <= size < 10**6 else 0  # does not fit then
        parts.append((values * (size // max(1, len(values)) + 1))[:size].ljust(size, b"\0"))
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + size]}
    return deepcopy(made), b"".join(parts)


def use_from_python(folder: str) -> None:
    vector = AlignmentVector.from_pretrained(folder)
    (vector + 0.5 * vector - AlignmentVector.from_pretrained("full")).norm()
    vector.in_memory().norm()
    model_card(vector, "me/av")
    saved = vector.save_pretrained("out/again")
    again = AlignmentVector.from_pretrained(saved)
    assert again.fingerprint() == vector.fingerprint()


EXTRACT = (
    "extract base aligned -o out/av",
    "extract base aligned -o out/av --rank 2 --json",
    "extract base lora -o out/av --json",
)
FOLD = (
    "fold base --vector k=full --vector l=low_rank --set k=0.7,l=-2 --any-base -o out/model",
    "fold base --vector k=full --set k=1 --any-base --dtype bfloat16 -o out/model",
    "fold base --vector k=low_rank --set k=1 -o out/model",
)


def uses(vector: str) -> tuple[str, ...]:
    return (
        f"python {vector}",
        f"inspect {vector}",
        f"inspect {vector} again --json",
        f"compress {vector} --rank 2 -o out/small",
        f"compress {vector} --energy 0.5 --drop-rest --dtype float16 -o out/small --json",
        f"export {vector} --format peft -o out/lora",
        f"export {vector} --format gguf --base base -o out/lora.gguf",
        f"fold base --vector k={vector} --set k=-0.5 -o out/model",
    )


SHARD = "model-00001-of-00002.safetensors"
KINDS = {
    "checkpoint": ((f"base/{SHARD}", f"aligned/{SHARD}"), mutated_safetensors, EXTRACT + FOLD),
    "index": (("base/model.safetensors.index.json",), mutated_json, EXTRACT + FOLD),
    "config": (
        ("base/config.json",),
        mutated_json,
        (*EXTRACT, *FOLD, *["export adapter --format gguf --base base -o out/lora.gguf"] * 4),
    ),
    "lora": (("lora/adapter_model.safetensors",), mutated_safetensors, EXTRACT[2:]),
    "lora_config": (("lora/adapter_config.json",), mutated_json, EXTRACT[2:]),
    "training": (("lora/training.json",), mutated_json, EXTRACT[2:]),
    "dense": (("full/model.safetensors",), mutated_safetensors, uses("full")),
    "residual": (("full/residual-00001.safetensors",), mutated_safetensors, uses("full")),
    "metadata": (("full/alignment_vector.json",), mutated_json, uses("full")),
    "factors": (("adapter/adapter_model.safetensors",), mutated_safetensors, uses("adapter")),
    "low_rank": (("low_rank/alignment_vector.json",), mutated_json, uses("low_rank")),
    "adapter": (("adapter/alignment_vector.json",), mutated_json, uses("adapter")),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A base, an aligned copy, a LoRA adapter and vectors, a few numbers each; we are inside."""
    root = tmp_path_factory.mktemp("fuzz")
    folder = root / "deep" / "down"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    layer = "model.layers.0"
    base = {
        f"{layer}.self_attn.q_proj.weight": torch.randn(8, 8),
        f"{layer}.mlp.down_proj.weight": torch.randn(8, 12),
        "model.norm.weight": torch.randn(8),
        "model.embed_tokens.weight": torch.randn(6, 8),
        "lm_head.weight": torch.randn(6, 8),
        f"{layer}.self_attn.k_proj.weight": torch.randn(4, 8),
        f"{layer}.self_attn.v_proj.weight": torch.randn(4, 8),
        f"{layer}.self_attn.o_proj.weight": torch.randn(8, 8),
        f"{layer}.mlp.gate_proj.weight": torch.randn(12, 8),
        f"{layer}.mlp.up_proj.weight": torch.randn(12, 8),
        f"{layer}.input_layernorm.weight": torch.randn(8),
        f"{layer}.post_attention_layernorm.weight": torch.randn(8),
        "scale": torch.tensor(2.0),
        "position_ids": torch.arange(4),
    }
    aligned = {name: t + 0.1 if t.is_floating_point() else t for name, t in base.items()}
    for tensor in aligned.values():
        tensor.view(-1)[::5] //= 10**6  # some close to zero: residuals
        if tensor.is_floating_point():
            tensor.view(-1)[::3] = 1e-6 * torch.rand_like(tensor.view(-1)[::3])
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 6, "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }  # fmt: skip
    aligned["position_ids"] = base["position_ids"]
    for name, tensors in (("base", base), ("aligned", aligned)):
        (folder / name).mkdir()
        shards = {SHARD: dict(list(tensors.items())[:3]), SHARD.replace("1-of", "2-of"): {}}
        shards[SHARD.replace("1-of", "2-of")] = dict(list(tensors.items())[3:])
        for file, part in shards.items():
            save_file(part, folder / name / file, metadata={"format": "pt"})
        weight_map = {tensor: file for file, part in shards.items() for tensor in part}
        (folder / name / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        )
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "lora").mkdir()
    factors = {}
    for name in list(base)[:2]:
        module, (out, into) = name.removesuffix(".weight"), base[name].shape
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, into)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, 2)
        factors[f"base_model.model.{module}.lora_magnitude_vector"] = torch.rand(out)
    factors["base_model.model.model.norm.weight"] = torch.rand(8)
    factors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = (
        torch.rand(2, 8)
    )
    save_file(factors, folder / "lora" / "adapter_model.safetensors")
    written = {
        "adapter_config.json": {
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True,
            "fan_in_fan_out": False, "rank_pattern": {"q_proj": 2, "layers.0.*": 2},
            "use_dora": True, "modules_to_save": ["model.norm"], "trainable_token_indices": [1, 4],
            "alpha_pattern": {".*down_proj": 8.0}, "target_modules": ["q_proj", "down_proj"],
        },
        "training.json": {"data": "x", "prefer": ["a", "b"], "pairs": 3, "curve": [{"loss": 0.5}]},
    }  # fmt: skip
    for file, content in written.items():
        (folder / "lora" / file).write_text(json.dumps(content))
    vector = AlignmentVector.extract(folder / "base", folder / "aligned", "tea expert")
    for name in ("full", "again"):
        vector.save_pretrained(folder / name)
    assert (folder / "full" / "residual-00001.safetensors").exists()
    compress(vector, rank=2).save_pretrained(folder / "low_rank")
    compress(vector, rank=2, drop_rest=True).save_pretrained(folder / "adapter")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # to wake a second one takes longer than all of the work
    with pytest.MonkeyPatch.context() as patch, memory_limit():
        patch.chdir(folder)
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr(adapter_config, "_PATIENCE", 0.5)
        yield root
    torch.set_num_threads(threads)


@contextmanager
def memory_limit():
    """What a few bytes of a header declare must not be allocated."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class TooLong(BaseException):
    """No Exception: the code under test must not catch it."""


@contextmanager
def time_limit():
    def stop(*_):
        raise TooLong(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    out = Path("out").resolve()
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path != out and out not in path.parents
    }


def strict(constant: str):
    raise AssertionError(f"{constant} is not JSON")


def run(command: str) -> str:
    """What a command prints; if it refuses, the line that the user sees."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(io.StringIO()):
            if command.startswith("python "):
                use_from_python(command.split()[1])
            else:
                COMMAND(command.split(), standalone_mode=False)
    except AlignvecError as error:
        line = error_line(str(error))
        assert line.isprintable()
        assert len(line) < 2000
        return line
    text = printed.getvalue()
    assert all(line.isprintable() for line in text.split("\n"))
    if "--json" in command:
        json.loads(text, parse_constant=strict)
    return text


def attempt(root: Path, kind: str, seed: int, before: dict[Path, bytes | None]) -> str | None:
    """One case; what went wrong, as the exception and the line that raised it."""
    files, mutate, commands = KINDS[kind]
    sources = {file: Path(file).read_bytes() for file in files}
    for file, source in sources.items():
        Path(file).write_bytes(mutate(Random(f"{kind} {seed}"), source))
    command = Random(f"{seed} {kind}").choice(commands)
    Path("out").mkdir()
    try:
        with time_limit():
            run(command)
    except (Exception, TooLong) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"{type(error).__name__} in {where} of '{command}': {str(error)[:200]}"
    finally:
        shutil.rmtree("out", ignore_errors=True)
        for file, source in sources.items():
            Path(file).write_bytes(source)
    return None if snapshot(root) == before else f"'{command}' wrote outside its target"


def refused(command: str) -> str:
    """The line that a command ends with."""
    with time_limit():
        line = run(command)
    assert line.startswith("error: ")
    return line


@contextmanager
def changed(file: str, **fields):
    """A JSON file of the scene with other values."""
    source = Path(file).read_bytes()
    Path(file).write_text(json.dumps({**json.loads(source), **fields}))
    try:
        yield
    finally:
        Path(file).write_bytes(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_read_or_refused_in_one_line(kind, scene):
    before = snapshot(scene)
    wrong: dict[str, list[int]] = {}
    for seed in range(FIRST, FIRST + CASES):
        if found := attempt(scene, kind, seed, before):
            wrong.setdefault(found, []).append(seed)
    assert not wrong, "\n".join(f"{what}; seeds {seeds[:5]}" for what, seeds in wrong.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {r"(.|.)*\d": 2}}, "take too long"),
        ({"rank_pattern": {"[": 2}}, "pattern '['"),
        ({"rank_pattern": {"(" * 1500: 2}}, "pattern '("),
        ({"rank_pattern": {"(?:(?:q{99}){99}){99}": 2}}, "too large"),
        ({"rank_pattern": dict.fromkeys(["a{99999999}", "b" * 10**6], 2)}, "too large"),
        ({"r": 0}, "field 'r'"),
        ({"lora_alpha": "16"}, "field 'lora_alpha'"),
        ({"lora_alpha": 1e300}, "scaled by alpha / r"),
    ],
)
def test_an_adapter_config_is_checked(fields, message, scene):
    with changed("lora/adapter_config.json", **fields):
        assert message in refused("extract base lora -o out/av")


def test_sizes_in_a_config_are_not_believed(scene):
    sizes = dict.fromkeys(("num_hidden_layers", "num_labels", "vocab_size"), 10**12)
    with changed("base/config.json", **sizes), time_limit():
        run("extract base aligned -o out/av")  # or refused: the config of one of them is senseless
        shutil.rmtree("out", ignore_errors=True)
        refused("export adapter --format gguf --base base -o out/lora.gguf")


def test_rows_without_values_are_not_walked(scene, tmp_path):
    for name in ("base", "aligned"):
        header = {"w": {"dtype": "F32", "shape": [10**18, 0], "data_offsets": [0, 0]}}
        text = json.dumps(header).encode()
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with time_limit():
        run(f"extract {tmp_path}/base {tmp_path}/aligned -o {tmp_path}/av")
        run(f"fold {tmp_path}/base --vector k={tmp_path}/av --set k=1 -o {tmp_path}/out")


def test_a_pipe_is_not_waited_for(scene, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    assert "no file" in refused(f"extract {tmp_path} aligned -o out/av")


def test_8_bit_floats_and_infinity_in_a_config_are_fine(scene, tmp_path):
    """mamba2 writes the latter."""
    weights = {"w.weight": torch.randn(4, 4).to(torch.float8_e4m3fn)}
    for name in ("base", "aligned"):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"limit": [0.0, Infinity]}')
        weights = {"w.weight": (weights["w.weight"].float() + 1).to(torch.float8_e4m3fn)}
    run(f"extract {tmp_path}/base {tmp_path}/aligned -o {tmp_path}/av")
    run(
        f"fold {tmp_path}/base --vector k={tmp_path}/av --set k=1 --dtype bfloat16 "
        f"-o {tmp_path}/out"
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"limit": [0.0, float("inf")], "torch_dtype": "bfloat16"}


def test_a_full_disk_is_noticed_before_anything_is_written(scene, monkeypatch):
    before = snapshot(scene)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    for command in (EXTRACT[0], FOLD[0], "compress full --rank 2 --drop-rest -o out/small"):
        assert "no space in" in refused(command)
        assert not Path("out").exists()
    assert snapshot(scene) == before


def test_vectors_that_only_claim_the_same_base_do_not_add(scene):
    one = AlignmentVector.from_pretrained("full")
    deltas = {name: LowRank(torch.ones(1, 3), torch.ones(3, 1)) for name in one.deltas}
    other = dataclasses.replace(one, deltas=deltas)
    for act in (one.dot, one.__add__):
        with pytest.raises(AlignvecError, match="is of shape"):
            act(other)


def test_names_are_drawn_and_printed_as_they_are(scene, tmp_path):
    vector = dataclasses.replace(
        AlignmentVector.from_pretrained("full"), name="from $5 to $\\frac{10$"
    )
    vector.save_pretrained(tmp_path / "av")
    run(f"inspect {tmp_path}/av -o {tmp_path}/norms")
    assert (tmp_path / "norms-av.png").exists()
    with pytest.raises(AlignvecError, match="control characters"):
        dataclasses.replace(vector, name="\x1b[2J").save_pretrained(tmp_path / "red")
    (0.0 * vector).save_pretrained(tmp_path / "empty")
    found = json.loads(run(f"inspect {tmp_path}/av {tmp_path}/empty --json"))
    assert found["cosine"]["av"]["empty"] is None
    assert error_line("\x1b[2J \n\ud800" + 2000 * "x").startswith(r"error: \x1b[2J \ud800xxx")


def test_two_names_that_are_one_to_llama_cpp_are_refused(scene, tmp_path):
    vector = AlignmentVector.from_pretrained("adapter")
    delta = vector.deltas["model.layers.0.self_attn.q_proj.weight"]
    twice = {**vector.deltas, "layers.0.attention.wq.weight": delta}
    dataclasses.replace(vector, deltas=twice).save_pretrained(tmp_path / "av")
    line = refused(f"export {tmp_path}/av --format gguf --base base -o {tmp_path}/lora.gguf")
    assert "is a second blk.0.attn_q.weight" in line
