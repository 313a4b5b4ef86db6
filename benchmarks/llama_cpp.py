"""Does llama.cpp compute theta + lambda tau? Its logits under an exported adapter, and alignvec's.

    python benchmarks/llama_cpp.py --llama-python OTHER/bin/python \\
        -o benchmarks/results/llama_cpp.json

OTHER is an environment with llama-cpp-python, which stands alone: alignvec need not be there. The
vector is a random one of low rank over every linear layer, or `--vector`. It is exported to GGUF,
and next-token logits at every position of a few prompts are compared at several strengths:
llama.cpp with the adapter at scale lambda, against a KnobModel in float32. Once on the base's GGUF
file as it is (quantised, and then llama.cpp rounds activations too: the difference at lambda = 0 is
the floor), once on its copy in float32, where nothing but float noise may remain.

Another architecture: `--base FOLDER --gguf FILE`, the file as llama.cpp's own converter writes it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from alignvec.base.identity import base_id
from alignvec.base.live import open_weights
from alignvec.base.source import _embedded_gguf, find_base
from alignvec.files import write_json
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import can_factor
from alignvec.vector.delta import Delta, Dense, LowRank
from alignvec.vector.export import export
from provenance import made

STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0)
PROMPTS = (
    "The capital of France is",
    "My knee hurts when I climb stairs. What should I do about it?",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Should I pay off the mortgage early, or invest the money in an index fund?",
    "It was the best of times, it was the worst of times, it was the age of wisdom",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-python", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vector", help="low-rank; by default a random one")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--gguf", type=Path, help="the base for llama.cpp, unless it is embedded")
    options = parser.parse_args()
    stored = options.gguf or _embedded_gguf()
    if options.vector:
        vector = AlignmentVector.from_pretrained(options.vector)
    else:
        vector = random_vector(options.base)
    model = KnobModel.from_pretrained(options.base, {"k": vector}, "float32", "cpu")
    prompts = [list(model.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    result: dict[str, Any] = {
        "base": model.model.config.model_type if options.gguf else "embedded",
        "vector": vector.name,
        "tokens": sum(map(len, prompts)),
    }
    with tempfile.TemporaryDirectory() as scratch:
        adapter = export(vector, "gguf", Path(scratch) / "adapter.gguf", options.base)
        plain = Path(scratch) / "float32.gguf"
        dequantise(stored, plain)
        for name, file in {"as stored": stored, "float32": plain}.items():
            out = Path(scratch) / "logits.npy"
            request = {
                "model": str(file),
                "adapter": str(adapter),
                "strengths": STRENGTHS,
                "prompts": prompts,
                "out": str(out),
            }
            code = f"{inspect.getsource(llama_logits)}\nllama_logits({json.dumps(request)!r})"
            # Isolated (-I), or this file could be what `import llama_cpp` finds.
            subprocess.run([options.llama_python, "-I", "-c", code], check=True)
            theirs = torch.from_numpy(np.load(out))
            result[name] = list(compare(model, prompts, theirs))
            print(name, *result[name], sep="\n", flush=True)
    write_json(options.out, {**result, "made": made()})


def random_vector(base: str) -> AlignmentVector:
    """A vector on every linear weight, a tenth of its length."""
    torch.manual_seed(0)
    weights = open_weights(find_base(base))
    transposed = weights.transposed or frozenset()
    deltas: dict[str, Delta] = {}
    for name, weight in weights.items():
        if can_factor(name, Dense(weight)):
            rank = 4 + 4 * (len(deltas) % 2)  # an adapter has one alpha for tensors of any rank
            rows, columns = reversed(weight.shape) if name in transposed else weight.shape
            a, b = torch.randn(rank, columns), torch.randn(rows, rank)
            b *= 0.1 * weight.float().norm() / (b @ a).norm()
            deltas[name] = LowRank(a, b, name in transposed)
    return AlignmentVector(deltas, base_id(base), "random, ranks 4 and 8")


def dequantise(source: Path, out: Path) -> None:
    """The same GGUF model in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.get_field(gguf.Keys.General.ARCHITECTURE).contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == gguf.Keys.General.ARCHITECTURE:
            continue  # the writer's own
        value = field.contents()
        if key == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(key, value, *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_logits(request: str) -> None:
    """Write llama.cpp's logits, [strength, token, vocabulary]; runs in the other environment."""
    import json
    from importlib import import_module

    import numpy as np

    llama_cpp = import_module("llama_cpp")  # for mypy the name is this file's
    wanted = json.loads(request)
    found = []
    for strength in wanted["strengths"]:
        model = llama_cpp.Llama(
            wanted["model"],
            lora_path=wanted["adapter"],
            lora_scale=strength,
            n_ctx=256,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,  # keys and values are cached in 16 bits by default
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        for tokens in wanted["prompts"]:
            model.reset()
            model.eval(tokens)
            found.append(model.scores[: len(tokens)].copy())
        model.close()
    logits = np.concatenate(found)
    np.save(wanted["out"], logits.reshape(len(wanted["strengths"]), -1, logits.shape[1]))


def compare(
    model: KnobModel, prompts: Sequence[Sequence[int]], theirs: torch.Tensor
) -> Iterator[dict[str, float]]:
    """For each strength how far the two are apart, and how far the vector moves the model."""
    base = logits(model, 0, prompts)
    for strength, other in zip(STRENGTHS, theirs, strict=True):
        ours = logits(model, strength, prompts)
        yield {
            "lambda": strength,
            "effect_kl": divergence(ours, base),
            "effect_max_logit": float((ours - base).abs().max()),
            "difference_kl": divergence(ours, other),
            "difference_max_logit": float((ours - other).abs().max()),
            "same_top_token": float((ours.argmax(-1) == other.argmax(-1)).double().mean()),
        }


def logits(model: KnobModel, strength: float, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    model.set(k=strength)
    with torch.inference_mode():
        return torch.cat([model.model(torch.tensor([tokens])).logits[0] for tokens in prompts])


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) per token in nats; in float64, for what it measures may be tiny."""
    p, q = (values.double().log_softmax(-1) for values in (p, q))
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
