"""What compression costs: preference rates and KL of a compressed vector against the whole one.

    python benchmarks/compress_effect.py VECTOR --domain medical -o benchmarks/results/compress

For each rank, for factors in 16 bits and for dense deltas in 8: the rates on the test split at a
few strengths, and the mean KL divergence per token, KL(whole || compressed) in nats, at lambda = 2
over the expert responses. Writes OUT.json, OUT.png and OUT.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignvec.base.logprobs import Row
from alignvec.data import LEVELS, read_records
from alignvec.evaluate import preference_rates, response_rows
from alignvec.files import write_json
from alignvec.knobs.model import KnobModel
from alignvec.report.figure import figure
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import Dense, LowRank
from provenance import made

STRENGTHS = (-2.0, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vector")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--domain", default="medical")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    whole = AlignmentVector.from_pretrained(options.vector)
    records = list(read_records("builtin", domain=options.domain, split="test"))
    vectors = {"whole": whole, "bfloat16": rounded(whole), "int8": in_8_bits(whole)}
    vectors |= {f"rank {rank}": compress(whole, rank) for rank in options.ranks}
    model = KnobModel.from_pretrained(options.base, vectors)
    rows = response_rows(model.tokenizer, records, LEVELS)
    expert = [Row(row.prompt, [row.responses[-1]]) for row in rows]
    reference = next_tokens(model.set(whole=2.0), expert)
    results: dict[str, Any] = {}
    for name in vectors:
        kl = divergence(reference, next_tokens(model.set({name: 2.0}), expert))
        energies = [
            delta.energy or 1.0 for delta in vectors[name].deltas.values()
            if isinstance(delta, LowRank)
        ]  # fmt: skip
        results[name] = {
            "energy": sum(energies) / len(energies) if energies else 1.0,
            "kl": kl,
            "rates": {
                str(by): dataclasses.asdict(
                    preference_rates(model.set({name: by}).model, rows, LEVELS)
                )["rate"]
                for by in STRENGTHS
            },
        }
        print(name, results[name], flush=True)
        write_json(options.out.with_suffix(".json"), {**results, "made": made()})
    draw(results, options.out, options.domain)


def rounded(vector: AlignmentVector) -> AlignmentVector:
    import torch

    deltas = {
        name: LowRank(delta.a.bfloat16(), delta.b.bfloat16(), delta.transposed)
        for name, delta in vector.deltas.items()
        if isinstance(delta, LowRank)
    }
    assert all(delta.dtype == torch.bfloat16 for delta in deltas.values())
    return dataclasses.replace(vector, deltas=deltas)


def in_8_bits(vector: AlignmentVector) -> AlignmentVector:
    """Dense deltas, through the disk in int8."""
    dense = {name: Dense(delta.dense()) for name, delta in vector.deltas.items()}
    with TemporaryDirectory() as folder:
        full = dataclasses.replace(vector, deltas=dense)
        saved = full.save_pretrained(Path(folder) / "int8", "int8")
        return AlignmentVector.from_pretrained(saved).in_memory()


def next_tokens(model: KnobModel, rows: Sequence[Row]) -> list[Any]:
    """Log-probabilities of the next token at every position of each response, [T, V]."""
    import torch

    found = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.responses[0]]], device=model.model.device)
            logits = model.model(ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            found.append(logits.float().log_softmax(-1).half())
    return found


def divergence(reference: Sequence[Any], other: Sequence[Any]) -> float:
    total = count = 0.0
    for p, q in zip(reference, other, strict=True):
        total += float((p.float().exp() * (p.float() - q.float())).sum())
        count += len(p)
    return total / count


def draw(results: dict[str, Any], path: Path, domain: str) -> None:
    names = [name for name in results if name.startswith("rank")]
    names += ["int8", "bfloat16", "whole"]
    with figure(path) as axes:
        for by, level, colour, marker in (
            ("-2.0", "avoidance", "#D55E00", "o"),
            ("1.0", "expert", "#56B4E9", "^"),
            ("2.0", "expert", "#0072B2", "D"),
        ):
            rate = [results[name]["rates"][by][level] for name in names]
            label = f"{level} at lambda {float(by):g}"
            axes.plot(names, rate, color=colour, marker=marker, linewidth=2, label=label)
        for index, name in enumerate(names[:-1]):
            kl = results[name]["kl"]
            axes.annotate(f"KL {kl:.2g}", (index, 0.02), ha="center", fontsize=9, color="#666666")
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("preference rate on the test split")
        axes.set_title(f"A compressed {domain} vector", loc="left", fontsize=12)
        axes.legend(frameon=False, loc="center right")


if __name__ == "__main__":
    main()
