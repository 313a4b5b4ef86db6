"""Many settings in one batch: tokens a second of the gate and of what people use instead, one run.

    python benchmarks/gate_speed.py -o benchmarks/results/gate_speed.json [--vector medical-av]
    python benchmarks/gate_speed.py -o benchmarks/results/gate_speed_7b.json --shape 7b

Every row of a batch has a setting of its own over three vectors (one where it says so); all
write the same number of tokens, greedily. The contestants take turns, so that a machine whose speed
drifts is as slow for one as for the other; the ratios are medians of the ratios round by round.

    base            the plain model, no knobs
    folded          one setting for the whole batch, in the weights
    gated 1, 3      a setting a row, one and three vectors
    peft mixed      PEFT's mixed batch: an adapter for each setting, chosen by `adapter_names`
    peft switching  one request after the other, `set_adapter` before each
    dera            logits of base and aligned models blended with a strength a row (one vector)
    merged models   one request after the other, each on a model of its own (already merged)

`--shape 7b` runs base, folded and gated on blocks of a 7B Llama with random weights. `--compile`
adds base and gate with a static cache under torch.compile (CUDA graphs on a GPU).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from provenance import made

SHAPES = {  # of random weights
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
}  # fmt: skip
KNOBS = ("one", "two", "three")
Generate = Callable[..., Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vector", help="A low-rank vector of the embedded model; else random.")
    parser.add_argument("--shape", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--blocks", type=int, default=4, help="Of the 7B shape.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32, help="New tokens a row.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="Only these contestants.")
    parser.add_argument("--compile", action="store_true", help="Also compiled, static cache.")
    options = parser.parse_args()
    model, tokenizer, prompts = load(options.shape, options.blocks)
    vectors = three_vectors(model, options.vector)
    result: dict[str, Any] = {
        "model": options.shape,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(model),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "batches": {},
    }
    for size in options.batches:
        inputs = tokenizer(
            (prompts * size)[:size], return_tensors="pt", padding=True, padding_side="left"
        ).to(model.device)
        runs = contestants(model, vectors, inputs, options)
        result["batches"][size] = race(runs, size * options.tokens, options.rounds)
    if options.shape == "embedded":
        result["turning"] = turning(model, tokenizer, vectors)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**result, "made": made()}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def load(shape: str, blocks: int) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and prompts."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from alignvec.base.dtypes import default_dtype
    from alignvec.base.load import load_base
    from alignvec.base.prompts import render_chat
    from alignvec.data import read_records

    base = load_base("embedded")
    records = list(read_records("builtin", domain="medical", split="test"))
    prompts = [
        render_chat(base.tokenizer, [{"role": "user", "content": record.query}])
        for record in records
    ]
    if shape == "embedded":
        return base.model, base.tokenizer, prompts
    config = LlamaConfig(
        **SHAPES[shape], num_hidden_layers=blocks, vocab_size=len(base.tokenizer),
        eos_token_id=base.tokenizer.eos_token_id, pad_token_id=base.tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    device = str(base.model.device)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=default_dtype(device))
    return model.eval(), base.tokenizer, prompts


def device_name(model: Any) -> str:
    import torch

    if model.device.type == "cuda":
        return str(torch.cuda.get_device_name())
    return f"CPU, {torch.get_num_threads()} threads"


def three_vectors(model: Any, folder: str | None) -> dict[str, Any]:
    """Three vectors of rank 16: the layers of `folder`, or every linear layer of every block."""
    import torch

    from alignvec.base.identity import base_id
    from alignvec.vector.alignment_vector import AlignmentVector
    from alignvec.vector.delta import LowRank

    weights = dict(model.named_parameters())
    if folder:
        shown = AlignmentVector.from_pretrained(folder)
        names = [name for name, delta in shown.deltas.items() if isinstance(delta, LowRank)]
    else:
        names = [name for name in weights if name.endswith("_proj.weight")]
    generator = torch.Generator().manual_seed(0)

    def random() -> AlignmentVector:
        deltas = {
            name: LowRank(
                0.01 * torch.randn(16, weights[name].shape[1], generator=generator),
                0.01 * torch.randn(weights[name].shape[0], 16, generator=generator),
            )
            for name in names
        }
        return AlignmentVector(deltas, base_id(model))

    first = shown if folder else random()
    return {"one": first, "two": random(), "three": random()}


def strengths(size: int) -> list[dict[str, float]]:
    """As many settings as rows, all distinct."""
    return [
        {knob: ((7 * row + 3 * place) % 41 - 20) / 20 for place, knob in enumerate(KNOBS)}
        for row in range(size)
    ]


def contestants(
    model: Any, vectors: dict[str, Any], inputs: Any, options: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """Name -> a run over the whole batch; what it needs is prepared, and warm, before."""
    import torch
    from transformers import CompileConfig

    from alignvec.knobs.fold import Fold
    from alignvec.knobs.gate import Gate

    size, device = len(inputs["input_ids"]), model.device
    settings = strengths(size)
    static = {"cache_implementation": "static", "compile_config": CompileConfig(mode=None)}
    static["compile_config"]._compile_all_devices = True

    def write(of: Any, rows: Any = inputs, **more: Any) -> None:
        with torch.inference_mode():
            of.generate(
                **rows, do_sample=False, min_new_tokens=options.tokens,
                max_new_tokens=options.tokens, **more,
            )  # fmt: skip

    def one_by_one(each: Callable[[int, Any], None]) -> None:
        for row in range(size):
            mask = inputs["attention_mask"][row].bool()
            each(row, {name: value[row : row + 1, mask] for name, value in inputs.items()})

    def twin(change: Callable[[Any], None] = lambda model: None) -> Any:
        """A model of its own, so that no contestant sees another's hooks."""
        copied = copy.deepcopy(model)
        change(copied)
        return copied

    def fold(copied: Any) -> None:
        Fold(copied, vectors).set(settings[0])

    def gated(knobs: Sequence[str]) -> Any:
        def change(copied: Any) -> None:
            gate = Gate(copied, {knob: vectors[knob] for knob in knobs})
            chosen = [{knob: setting[knob] for knob in knobs} for setting in settings]
            gate.set(gate.tensor(chosen))

        return twin(change)

    wanted = options.only or [
        "base", "folded", "gated 1", "gated 3",
        *(() if options.shape != "embedded" else
          ("peft mixed", "peft switching", "dera", "merged models")),
    ]  # fmt: skip
    runs: dict[str, Callable[[], None]] = {}
    if "base" in wanted:
        runs["base"] = lambda: write(model)
    if "folded" in wanted:
        folded = twin(fold)
        runs["folded"] = lambda: write(folded)
    if "gated 1" in wanted:
        gated_one = gated(KNOBS[:1])
        runs["gated 1"] = lambda: write(gated_one)
    if "gated 3" in wanted:
        gated_three = gated(KNOBS)
        runs["gated 3"] = lambda: write(gated_three)
    if options.compile:
        compiled, compiled_gate = twin(), gated(KNOBS)
        runs["base compiled"] = lambda: write(compiled, **static)
        runs["gated 3 compiled"] = lambda: write(compiled_gate, **static)
    if {"peft mixed", "peft switching"} & set(wanted):
        adapted = with_adapters(twin(), vectors, settings)
        names = [f"row{row}" for row in range(size)]

        def switch(row: int, alone: Any) -> None:
            adapted.set_adapter(names[row])
            write(adapted, alone)

        if "peft mixed" in wanted:
            runs["peft mixed"] = lambda: write(adapted, adapter_names=names)
        if "peft switching" in wanted:
            runs["peft switching"] = lambda: one_by_one(switch)
    if "dera" in wanted:
        aligned = twin(lambda copied: Fold(copied, {"one": vectors["one"]}).set({"one": 1.0}))
        by = torch.tensor([[setting["one"]] for setting in settings], device=device)
        runs["dera"] = lambda: write(model, logits_processor=[blend(aligned, by, inputs)])
    if "merged models" in wanted:
        merged = twin(fold)
        runs["merged models"] = lambda: one_by_one(lambda row, alone: write(merged, alone))
    return runs


def with_adapters(model: Any, vectors: dict[str, Any], settings: list[dict[str, float]]) -> Any:
    """A PEFT model with the sum of each setting as an adapter."""
    from peft import PeftModel

    from alignvec.vector.export import export

    adapted: Any = None
    with tempfile.TemporaryDirectory() as folder:
        for row, setting in enumerate(settings):
            one, two, three = (setting[knob] * vectors[knob] for knob in KNOBS)
            path = export(one + two + three, "peft", Path(folder) / f"row{row}")
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, path, adapter_name="row0")
            else:
                adapted.load_adapter(path, adapter_name=f"row{row}")
    return adapted.to(model.dtype).eval()


def blend(aligned: Any, by: Any, inputs: Any) -> Any:
    """Decoding-time realignment (Liu et al. 2024): (1 - lambda) base + lambda aligned logits."""
    import torch
    from transformers import DynamicCache, LogitsProcessor

    class Blend(LogitsProcessor):
        cache = DynamicCache()
        mask = inputs["attention_mask"]

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            new = input_ids[:, self.cache.get_seq_length() :]
            self.mask = torch.nn.functional.pad(
                self.mask, (0, input_ids.shape[1] - self.mask.shape[1]), value=1
            )
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
            logits = aligned(
                new, attention_mask=self.mask, position_ids=positions,
                past_key_values=self.cache, use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            return scores + by.to(scores) * (logits.to(scores) - scores)

    return Blend()


def race(
    runs: dict[str, Callable[[], None]], tokens: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Tokens a second, and the share of the base's speed, of each; medians over rounds."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):  # the first is a warm-up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
                print(f"{name}: {tokens / seconds[name][-1]:.1f} tokens/s", flush=True)
    return {
        name: {
            "tokens_per_second": round(tokens / statistics.median(found), 2),
            "of_base": round(
                statistics.median(b / s for b, s in zip(seconds["base"], found, strict=True)), 4
            ),
            "seconds": [round(value, 3) for value in found],
        }
        for name, found in seconds.items()
    }


def turning(model: Any, tokenizer: Any, vectors: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of one turn: folded, gated, and by way of a merged checkpoint on disk."""
    from alignvec.base.load import load_checkpoint
    from alignvec.base.source import find_base
    from alignvec.knobs.model import KnobModel
    from alignvec.vector.fold import fold

    found: dict[str, Any] = {}
    for count in (1, 3):
        some = {knob: vectors[knob] for knob in KNOBS[:count]}
        seconds = found[f"{count} vectors"] = {}
        for mode in ("fold", "gate"):
            knobs = KnobModel(copy.deepcopy(model), tokenizer, some, check_base=False, mode=mode)
            seconds[mode] = timed(lambda setting, knobs=knobs: knobs.set(setting), list(some), 50)  # type: ignore[misc]

        with tempfile.TemporaryDirectory() as folder:

            def merge(setting: dict[str, float], folder: str = folder) -> None:
                turned = [(vectors[knob], by) for knob, by in setting.items()]
                out = Path(folder) / "merged"
                fold(find_base("embedded"), turned, out, "bfloat16", True, check_base=False)
                load_checkpoint(out, model.dtype)

            seconds["save and reload"] = timed(merge, list(some), 5)
        for mode in ("fold", "gate"):
            seconds[f"reload over {mode}"] = seconds["save and reload"] / seconds[mode]
    return found


def timed(turn: Callable[[dict[str, float]], Any], knobs: Sequence[str], count: int) -> float:
    seconds = []
    for setting in strengths(count + 1):
        wanted = {knob: setting[knob] for knob in knobs}
        start = time.perf_counter()
        turn(wanted)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
