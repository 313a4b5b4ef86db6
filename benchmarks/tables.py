"""The tables of docs/benchmarks.md, and the numbers of README and tutorials, from results/.

    make numbers    (cog; a test checks that the pages are what the files say)

Every number that is printed there comes through here out of a file that says which command made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LEVELS = ("avoidance", "generic", "expert")
DOMAINS = ("medical", "financial", "legal")


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


def source(*names: str) -> str:
    """Where numbers come from: the file, the command, the machine, the date; of a script that has
    left, the commit that has it.
    """
    lines = []
    for name in names:
        made = result(name)["made"]
        script = next((word for word in made["command"].split() if word.endswith(".py")), None)
        gone = script and not (Path(__file__).parents[1] / script).exists()
        at = f" (the script is in commit {made['commit']}, no longer here)" if gone else ""
        lines.append(
            f"`results/{name}.json`: `{made['command']}`{at}; {made['on']}; {made['date']}."
        )
    return "\n\n".join(f"*{line}*" for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def share(value: float, digits: int = 2) -> str:
    """.39, 1.00, -.38."""
    text = f"{value + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def rates(point: dict[str, Any], levels: Sequence[str] = LEVELS) -> str:
    return " ".join(share(point["rate"][level]) for level in levels)


def families() -> str:
    """What works for which family; what refuses is told below, by number."""
    cells = result("families")["cells"]
    ways = list(next(iter(cells.values())))
    reasons: list[str] = []
    rows = []
    for family, found in cells.items():
        row = [family]
        for way in ways:
            if found[way] not in ("exact", *reasons):
                reasons.append(found[way])
            row.append("exact" if found[way] == "exact" else f"[{reasons.index(found[way]) + 1}]")
        rows.append(row)
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([table(["", *ways], rows), "", *told])


def lines() -> str:
    """What a knob does where training put its levels: rates, and the text beside them; then on
    another base; last, what one does that was trained on given texts alone.
    """
    rows = []
    runs = result("lines")["runs"]
    for file, what in (("lines-gemma3-270m", "Gemma 3 270M"), ("lines-given", "given texts alone")):
        runs |= {f"{name}, {what}": run for name, run in result(file)["runs"].items()}
    for name, run in runs.items():
        base, *checks = run["levels"]
        for check in (base, *checks):
            level = check["level"]
            greedy, sampled = check["text"]["greedy"], check["text"]["sampled"]
            own = "-"
            if level:
                low, high = check["rates"]["interval"][level]
                own = f"**{share(check['rates']['rate'][level])}** ({share(low)}-{share(high)})"
            words, numbers = f"{greedy['words']:.0f}", share(greedy["numbers"])
            if told := check["references"]:
                words += f" ({told['words']:.0f})"
                numbers += f" ({share(told['numbers'])})"
            rows.append(
                [
                    name if check is base else "",
                    f"{level} at {check['strength']:g}" if level else "base",
                    rates(check["rates"]),
                    own,
                    f"{share(greedy['repeated'])} / {share(sampled['repeated'])}",
                    words,
                    numbers,
                    f"{share(greedy['finished'])} / {share(sampled['finished'])}",
                    f"{sum(check['broken'].values())} of {greedy['answers']}",
                    share(greedy["likelihood"]),
                ]
            )
    header = ["vector", "knob", "rates", "own level", "repeated", "words (references)"]
    header += ["words with a digit (references)", "ended", "broken", "nats a token under the base"]
    return table(header, rows)


def bank() -> str:
    """Three knobs of one training, added at the places of every behaviour: the rate of the level
    that each domain was to have, and what the answers are like.
    """
    runs = result("bank")["runs"]
    (name,) = (name for name in runs if not name.endswith("text"))
    texts = {tuple(one["target"].items()): one for one in runs[f"{name}, text"]["behaviours"]}
    base = runs[f"{name}, text"]["base"]

    def text(one: dict[str, Any]) -> list[str]:
        found = one["quality"]
        return [
            share(found["repeated"]),
            f"{found['words']:.0f}",
            share(found["finished"]),
            f"{one['broken']} of {found['answers']}",
        ]

    rows = []
    for one in runs[name]["behaviours"]:
        target = one["target"]
        own = [share(one["rates"][domain]["rate"][target[domain]]) for domain in DOMAINS]
        how = "firmly" if one["firmly"] else "yes" if one["reached"] else "no"
        rows.append([*(target[domain] for domain in DOMAINS), " ".join(own), how])
        rows[-1] += text(texts[tuple(target.items())])
    header = [*DOMAINS, "rates of these levels", "reached", "repeated", "words", "ended", "broken"]
    return table(header, [["base", "", "", "", "", *text(base)], *rows])


def bank_leaks() -> str:
    """How much each level's rate rises where its knob is alone, at home and elsewhere."""
    runs = result("bank")["runs"]
    (name,) = (name for name in runs if not name.endswith("text"))
    rows = [
        [
            leak["knob"], level, *(share(leak["effect"][level][domain]) for domain in DOMAINS),
            f"{leak['neutral'][level]:.3f}",
        ]
        for leak in runs[name]["leak"]
        for level in LEVELS
    ]  # fmt: skip
    return table(["knob", "at the place of", *DOMAINS, "neutral text (KL, nats a token)"], rows)


def answers(level: str | None) -> str:
    """The answers of the first vector at a level's place, or of the base, as they came."""
    run = next(iter(result("lines")["runs"].values()))
    (check,) = (one for one in run["levels"] if one["level"] == level)
    said = zip(run["queries"], check["answers"], strict=True)
    return "\n\n".join(f"> **{_inline(query)}**\n>\n> {_inline(text)}" for query, text in said)


def _inline(text: str) -> str:
    """On one line, with nothing in it that Markdown would read."""
    flat = " ".join(text.split()) or "(nothing)"
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in flat)


def sweeps() -> str:
    """The rates of avoidance, generic and expert along each domain's knob."""
    found = {domain: result(f"{domain}-sweep") for domain in DOMAINS}
    queries = {domain: one["points"][0]["queries"] for domain, one in found.items()}
    points = {
        domain: {point["strength"]: point for point in one["points"]}
        for domain, one in found.items()
    }
    rows = [
        [
            f"{strength:g}" if strength else "0 (base)",
            *(rates(points[d][strength]) for d in DOMAINS),
        ]
        for strength in (-3.0, -1.8, -0.6, 0.0, 0.6, 1.2, 1.8, 3.0)
    ]
    best = [one["best"]["generic"] for one in found.values()]
    rows.append(
        ["highest rate of generic", *(f"{share(b['rate'])} (at {b['strength']:g})" for b in best)]
    )
    rows.append(
        [
            "rank correlation of lambda and the expert rate",
            *(share(one["spearman"]["expert"], 3) for one in found.values()),
        ]
    )
    return table(["lambda", *(f"{d} ({queries[d]} queries)" for d in DOMAINS)], rows)


def narrow() -> str:
    found = result("medical-narrow-sweep")
    strengths = [point["strength"] for point in found["points"]]
    best = found["best"]["generic"]
    return (
        f"Over the {len(strengths)} points from {strengths[0]:g} to {strengths[-1]:g} the rank "
        f"correlation in medicine is {share(found['spearman']['expert'], 3)}, and generic is found "
        f"at {share(best['rate'])} (at {best['strength']:g})."
    )


def learning_curve() -> str:
    found = result("learning_curve")
    rows = [
        [queries, str(one["pairs"]), share(one["points"]["-2.0"]["rate"]["avoidance"]),
         *(share(one["points"][at]["rate"]["expert"]) for at in ("1.0", "2.0"))]
        for queries, one in found.items() if queries != "made"
    ]  # fmt: skip
    return table(["queries", "pairs", "avoidance at -2", "expert at 1", "expert at 2"], rows)


def align_speed() -> str:
    found = result("align_speed")
    ours, trl = found["alignvec"], found["trl"]

    def row(name: str, seconds: float, steps: int, one: dict[str, Any]) -> list[str]:
        expert = [share(one[at]["expert"]) for at in ("1.0", "2.0", "3.0")]
        return [name, f"{seconds:.0f}", str(steps), share(one["-2.0"]["avoidance"]), *expert]

    header = [
        "",
        "seconds",
        "steps",
        "avoidance at -2",
        "expert at 1",
        "expert at 2",
        "expert at 3",
    ]
    return table(
        header,
        [
            row("alignvec", ours["seconds"], ours["steps"], ours["rates"]),
            row("TRL's defaults", trl["seconds_for_26_steps"], trl["steps_run"], trl["rates"]),
        ],
    ) + (
        f"\n\nTRL takes {found['trl_over_alignvec']:.1f} times as long ({found['pairs']} pairs of "
        f"{found['queries']} queries, rates on {found['held_out']} others)."
    )


def extract_scale() -> str:
    rows = [
        [shape, f"{one['gb_each']:.1f}", f"{one['seconds']:.0f}", f"{one['peak_gb']:.2f}"]
        for shape, one in result("extract_scale").items()
        if shape != "made"
    ]
    return table(["shape", "GB each", "seconds", "peak GB"], rows)


def merge_speed() -> str:
    found = result("merge_speed")
    names = {
        "mergekit": "mergekit, task_arithmetic",
        "alignvec full": "`alignvec fold`, full vectors",
        "alignvec rank 16": "`alignvec fold`, vectors of rank 16",
        "read inputs": "reading all inputs",
        "copy output": "`cp` of the output",
    }
    rows = [
        [text, f"{found['seconds'][name]:.1f}",
         f"{found['peak_gb'][name]:.2f}" if "put" not in name else ""]
        for name, text in names.items()
    ]  # fmt: skip
    difference = found["largest_difference"]
    return table(["", "seconds", "peak GB"], rows) + (
        f"\n\nmergekit takes {found['mergekit_over_alignvec_seconds']:.1f} times as long; fold "
        f"needs {found['alignvec_over_mergekit_memory']:.1%} of its memory and takes "
        f"{found['alignvec_over_read_and_copy']:.1f} times a plain read plus `cp`. The results "
        f"differ by {share(difference['mean_last_places'])} units of bfloat16's last place on "
        f"average, at most by {difference['last_places']:.0f} (near zero): mergekit adds in "
        "bfloat16, alignvec in float32."
    )


def compress() -> str:
    found = result("compress")
    names = {
        "whole": "whole", "bfloat16": "16-bit factors", "int8": "dense deltas in int8",
        "rank 8": "rank 8", "rank 4": "rank 4", "rank 2": "rank 2", "rank 1": "rank 1",
    }  # fmt: skip
    rows = [
        [text, share(one["energy"]), share(one["kl"], 3), share(one["rates"]["1.0"]["expert"]),
         share(one["rates"]["2.0"]["expert"]), share(one["rates"]["-2.0"]["avoidance"])]
        for name, text in names.items() for one in [found[name]]
    ]  # fmt: skip
    header = ["", "energy kept", "KL, nats", "expert at 1", "expert at 2", "avoidance at -2"]
    return table(header, rows)


def llama_cpp() -> str:
    found = result("llama_cpp")
    rows = [
        [f"{a['lambda']:g}", f"{a['effect_kl']:.2f}", f"{a['difference_kl']:.0e}",
         f"{a['difference_max_logit']:.0e}", f"{b['difference_kl']:.3f}"]
        for a, b in zip(found["float32"], found["as stored"], strict=True)
    ]  # fmt: skip
    header = [
        "lambda", "KL of the vector's effect, nats", "float32 base: KL to alignvec",
        "largest logit difference", "Q4_1 base: KL to alignvec",
    ]  # fmt: skip
    return table(header, rows)


def llama_cpp_tiny() -> str:
    worst = {
        name: max(one["difference_max_logit"] for one in found["float32"])
        for name, found in result("llama_cpp-tiny").items()
        if name != "made"
    }
    return table(
        ["architecture", "largest logit difference"],
        [[name, f"{value:.0e}"] for name, value in worst.items()],
    )


GATE = {
    "base": "base",
    "folded": "folded, one setting for all",
    "gated 1": "**gated, one vector**",
    "gated 3": "**gated, three vectors**",
    "peft mixed": "PEFT, an adapter a setting, mixed batch",
    "peft switching": "PEFT, switching adapters, one by one",
    "merged models": "a merged model a setting, one by one",
    "dera": "two models with blended logits (DeRa; one vector only)",
    "base compiled": "base, compiled",
    "gated 3 compiled": "**gated, three vectors, compiled**",
}


def gate(name: str, what: str = "tokens_per_second") -> str:
    """Tokens a second by batch size, or of the base's."""
    batches = result(name)["batches"]
    largest = batches[list(batches)[-1]]
    rows = []
    for key, text in GATE.items():
        if key in largest:
            values = [one[key]["tokens_per_second"] for one in batches.values()]
            rows.append(
                [text, *(f"{v:.3g}" for v in values)]
                + [share(one[key]["of_base"]) for one in batches.values()]
            )
    header = ["", *(f"batch {size}" for size in batches), *(f"of base at {b}" for b in batches)]
    return table(header, rows)


def gate_against_peers() -> str:
    at_32 = result("gate_speed")["batches"]["32"]
    ours = at_32["gated 3"]["tokens_per_second"]
    peft, dera = (at_32[peer]["tokens_per_second"] for peer in ("peft mixed", "dera"))
    return (
        f"At batch 32 the gate with three vectors is {ours / peft:.1f} times as fast as PEFT's "
        f"mixed batch and {ours / dera:.1f} times as blending two models, which serves one vector "
        "and holds the model twice."
    )


def turning() -> str:
    found = result("gate_speed")["turning"]
    rows = []
    for name, one in found.items():
        fold, gate, reload = (one[how] * 1e3 for how in ("fold", "gate", "save and reload"))
        name = name.replace("1 vectors", "1 vector")
        rows.append([name, f"{fold:.0f} ms", f"{gate:.2f} ms", f"{reload:.0f} ms"])
    return table(["", "`set()`, fold", "`set()`, gate", "write the merged model and load it"], rows)


SERVERS = {
    "alignvec": "**`alignvec serve`, three knobs, a setting a request**",
    "alignvec bare": "`alignvec serve`, no knobs",
    "transformers": "`transformers serve`, the level in a system prompt",
    "transformers batched": "... with its continuous batching",
}


def serve_load() -> str:
    """Speed and waiting times of each server at each number of clients."""

    def both(seconds: dict[str, float], unit: float = 1.0) -> str:
        return f"{unit * seconds['p50']:.3g} / {unit * seconds['p99']:.3g}"

    rows = [
        [
            text if place == 0 else "",
            clients,
            f"{seen['tokens_per_second']:.3g}",
            both(seen["first"]),
            both(seen["between"], 1e3),
        ]
        for name, text in SERVERS.items()
        for place, (clients, seen) in enumerate(
            result("serve_load")["servers"][name]["clients"].items()
        )
    ]
    header = ["", "clients", "tokens/s", "first token, s, p50 / p99", "between two, ms, p50 / p99"]
    return table(header, rows)


def serve_ratios() -> str:
    """How it compares, round by round."""
    found = result("serve_load")
    ratios, batch = found["ratios"], found["generate"]["batch"]

    def each(name: str, what: str) -> str:
        *most, last = (f"{ratios[name][n][what]:.2g}" for n in ratios[name])
        return f"{', '.join(most)} and {last}"

    *few, many = ratios["transformers"]
    return (
        f"At {batch} clients the server gives {share(ratios['generate'])} of the tokens a second "
        f"that `KnobModel.generate` gives at batch {batch}. At {', '.join(few)} and {many} clients "
        f"the first token takes {each('alignvec bare', 'first')} times as long as without knobs; "
        f"tokens come {each('transformers', 'tokens_per_second')} times as fast as from "
        f"`transformers serve`, {each('transformers batched', 'tokens_per_second')} times as fast "
        "as with its continuous batching."
    )


ENGINES = {
    "joined": "**rows that join between steps** (`alignvec.serve.rows`)",
    "joined bare": "... no knobs",
    "micro-batches": "micro-batches over `KnobModel.generate`",
    "manager": "transformers' `ContinuousBatchingManager`, no knobs",
    "manager gated": "... with the gate on, one setting for all",
}


def serve_engines() -> str:
    """The ways to share forward passes that the engine could have had."""
    found = result("serve_engines")["engines"]
    rows = [
        [
            text,
            f"{found[name]['tokens_per_second']:.3g}",
            f"{found[name]['first_p50']:.2g} / {found[name]['first_p99']:.2g}",
        ]
        for name, text in ENGINES.items()
    ]
    return table(["", "tokens/s", "first token, s, p50 / p99"], rows)


VLLM_RUNS = {
    "plain": "no adapters",
    "one LoRA": "one adapter, the same for all",
    "16 LoRAs": "16 adapters, a request has one",
    "knobs": "**three knobs, every request with a setting of its own**",
    "half": "... every other request without knobs",
    "none": "... no request with knobs",
}


def vllm_speed() -> str:
    """Knobs on vLLM beside its own adapters."""
    runs = result("vllm_speed")["runs"]
    batches = list(runs["plain"])
    rows = [
        [
            text,
            *(f"{runs[name][batch]['tokens_per_second']:.0f}" for batch in batches),
            *(f"{runs[name][batch]['first_token']:.2g}" for batch in batches),
        ]
        for name, text in VLLM_RUNS.items()
    ]
    header = [f"tokens/s at {batch}" for batch in batches]
    return table(["", *header, *(f"first token, s, at {batch}" for batch in batches)], rows)


def vllm_ratios() -> str:
    """What the knobs cost, and what they save."""
    runs = result("vllm_speed")["runs"]

    def ratios(name: str, other: str) -> str:
        found = [
            runs[name][batch]["tokens_per_second"] / runs[other][batch]["tokens_per_second"]
            for batch in runs[name]
        ]
        *first, last = [f"{one:.2g}" for one in found]
        return f"{', '.join(first)} and {last}"

    *first, last = runs["plain"]
    return (
        f"At batch {', '.join(first)} and {last} the knobs give {ratios('knobs', 'plain')} of the "
        f"tokens a second of an engine without adapters, and {ratios('knobs', '16 LoRAs')} times "
        f"those of 16 adapters; where no request turns one, {ratios('none', 'plain')}."
    )


def vllm_memory() -> str:
    """What knobs take on each GPU."""
    found = result("vllm_memory")
    rows = [
        [name, f"{one['knob']:.0f}", *(f"{one['slot'][shards]:.0f}" for shards in one["slot"])]
        for name, one in found["models"].items()
    ]
    shards = next(iter(found["models"].values()))["slot"]
    head = [f"the slot, {count} GPU{'s' * (count != '1')}" for count in shards]
    return table(["", "a knob", *head], rows)


def serve_soak() -> str:
    """What the server held, and whether anything failed."""
    found = result("serve_soak")
    held = found["after_the_first_minute"]
    return (
        f"{found['seconds'] / 60:.0f} minutes at {found['clients']} clients: {found['answered']:,} "
        f"answers, {found['errors']} errors; memory {held['first']:.0f} MB after the first minute, "
        f"{held['last']:.0f} at the end, {held['most']:.0f} at most."
    )


def serve_overload() -> str:
    """What becomes of clients that there is no room for."""
    found = result("serve_overload")
    return (
        f"{found['clients']} clients where there is room for {found['room']}, for "
        f"{found['seconds']:.0f} seconds: {found['told_to_come_back']} times 429, "
        f"{found['of_these_when']} with Retry-After, {found['errors']} errors. "
        f"{found['seconds_until_recovered']:.1f} s after all had gone, a request was answered as "
        "before."
    )


SEARCHES = [
    ("search", "plain, grid", "three vectors added, the paper's grid (9 x 9 x 9)"),
    ("search", "plain", "three vectors added"),
    ("search", "anchored", "... trained with the other domains held still (`--hold`)"),
    ("search", "apart", "... less what is common to them"),
    ("search", "two", "two vectors a domain, added"),
    ("search_small", "two", "... with fewer passes and queries"),
    ("search", "routed", "three vectors, routed"),
    ("search", "routed two, optuna", "two vectors a domain, routed, Optuna"),
    ("search", "routed two", "two vectors a domain, routed"),
    ("search_small", "routed two", "... with fewer passes and queries"),
]


def searches() -> str:
    rows = [
        [text, f"{one['reached']} of 27", str(one["firmly"]), str(one["passes"]),
         f"{one['queries']}, {one['held_out']}"]
        for file, key, text in SEARCHES for one in [result(file)[key]]
    ]  # fmt: skip
    header = ["", "reached", "with rates of at least .6", "passes", "queries searched, verified"]
    return table(header, rows)


def leaks() -> str:
    """How far one domain's knobs, from the base to its expert setting, move each mean level."""
    ways = {
        "plain": "added", "anchored": "held", "apart": "less the common part",
        "two": "two, added", "routed": "routed",
    }  # fmt: skip
    domains = sorted(DOMAINS)
    found = result("search")
    rows = [
        [text if turned == domains[0] else "", turned,
         *(share(found[way]["leak"][turned][moved]) for moved in domains)]
        for way, text in ways.items() for turned in domains
    ]  # fmt: skip
    return table(["", "turned", *domains], rows)


def retraining() -> str:
    found = result("retraining")
    summary = found["summary"]
    with_vectors = summary["vectors_seconds"] + summary["search_seconds"]
    retrained = [one for name, one in found.items() if name.startswith("retrain ")]
    seconds = ", ".join(f"{one['own_seconds']:.0f}" for one in retrained)
    rows = [
        ["six vectors, extracted and saved", f"{summary['vectors_seconds']:,.0f}"],
        [f"router, {found['search']['passes']} passes over {found['search']['queries']} queries",
         f"{summary['search_seconds']:,.0f}"],
        ["**27 behaviours with vectors**", f"**{with_vectors:,.0f}**"],
        [f"one retraining (mean of {seconds})", f"{summary['mean_retraining_seconds']:,.0f}"],
        ["**27 retrainings**", f"**{summary['all_retrainings_seconds']:,.0f}**"],
    ]  # fmt: skip
    reached = sum(one["reached"] for one in retrained)
    return table(["", "seconds"], rows) + (
        f"\n\nThat is {summary['times_faster']:.1f} times as fast; the paper has 12. The vectors "
        f"reach {found['search']['reached']} of the 27 behaviours on test queries; of the "
        f"{len(retrained)} retrained models {reached} reaches its own."
    )


def calibration() -> str:
    found = result("calibration")["domains"]
    rows = [
        [f"{asked}% expert", *(f"{found[d]['asked'][asked]['rate']:.0%}" for d in DOMAINS)]
        for asked in ("20", "50", "80")
    ]
    queries = ", ".join(f"{found[d]['queries']}" for d in DOMAINS)
    errors = [one["sampling_error"] for d in DOMAINS for one in found[d]["asked"].values()]
    return table(["asked", *DOMAINS], rows) + (
        f"\n\nQueries that the calibration did not see: {queries}; standard errors of "
        f"{min(errors):.0%} to {max(errors):.0%}."
    )


def front() -> str:
    rows = [
        [f"{one['setting']['medical']:.2f}", share(one["rates"]["medical"]["rate"]["expert"]),
         share(one["retained"]["kl"], 3), f"x {one['retained']['perplexity']:.2f}"]
        for one in sorted(result("front")["front"], key=lambda one: one["retained"]["kl"])
    ]  # fmt: skip
    return table(["strength", "expert rate", "KL from the base, nats a token", "perplexity"], rows)


def synthesis_faults() -> str:
    found = result("synthesis_faults")
    pair = [found["with faults and kills"], found["without"]]
    rows = [
        ["texts, all there and in order", *(f"{one['texts']:,}" for one in pair)],
        ["killed (-9)", *(str(one["kills"]) for one in pair)],
        ["texts a second, start and kills included",
         *(f"{one['texts_per_second']:.0f}" for one in pair)],
        ["texts delivered twice", *(str(one["delivered_twice"]) for one in pair)],
        ["in flight at the kills, at most",
         *(str(one["in_flight_at_the_kills_at_most"]) for one in pair)],
        ["peak memory of the client, MB", *(str(one["peak_mb"]) for one in pair)],
    ]  # fmt: skip
    return table(["", "with faults and kills", "without"], rows)


def data_served() -> str:
    found = result("data_served")
    broken = ", ".join(f"{rule} {count}" for rule, count in found["rejected"].items() if count)
    return (
        f"Of {found['read']} records that the embedded model wrote over `transformers serve`, "
        f"`clean` keeps {found['kept']}; rejected: {broken}."
    )


def clean() -> str:
    found = result("clean")
    untouched, dirtied = found["untouched"], found["dirtied"]
    good = dirtied["good_records"]
    false = round(dirtied["false_rejection_rate"] * good)
    return (
        f"Of {untouched['records']} untouched records "
        f"{untouched['false_rejection_rate'] * untouched['records']:.0f} are rejected, of {good:,} "
        f"good records in {dirtied['seeds']} dirtied copies {false}; {dirtied['found']:,} of "
        f"{dirtied['planted']:,} planted faults are found."
    )


def tone() -> str:
    found = result("tone-test-sweep"), result("tone-validation-sweep")
    levels = found[0]["levels"]
    queries = [one["points"][0]["queries"] for one in found]
    rows = []
    for strength in (-2.0, 0.0, 2.0):
        points = [p for one in found for p in one["points"] if p["strength"] == strength]
        mean = [
            sum(p["rate"][level] * p["queries"] for p in points) / sum(queries) for level in levels
        ]
        rows.append([f"{strength:g}", *map(share, mean)])
    return table(["strength", *levels], rows)


def tone_said() -> str:
    found = [result(f"tone-{part}-sweep") for part in ("test", "validation")]
    queries = sum(one["points"][0]["queries"] for one in found)
    spearman = " and ".join(share(one["spearman"]["formal"]) for one in found)
    return (
        f"Those are {queries} queries; rank correlations of strength and formal rate: {spearman}."
    )


def readme_caption() -> str:
    sweep = result("medical-line")
    trained = result("data_stats")["domains"]["medical"]["splits"]["train"]
    return (
        f"*SmolLM2-135M-Instruct, one vector trained on {trained} medical questions, rates on "
        f"{sweep['points'][0]['queries']} others,\nand how much of its answers is repeated; "
        "hatched: less sound than the base's. At 0 it is the base bit for bit.*"
    )


def data_stats() -> str:
    found = result("data_stats")
    rows = [
        [name, str(one["records"]), *map(str, one["splits"].values())]
        for name, one in found["domains"].items()
    ]
    rows.append(["all", str(found["records"]), *map(str, found["splits"].values())])
    return table(["domain", "records", *found["splits"]], rows)


def length_check() -> str:
    """How far the number of words gives a level away, in the built-in set."""
    (check,) = result("data_stats")["length_check"]
    return (
        f"From the number of words alone a level is guessed right in {check['accuracy']:.0%}, by "
        f"chance in {check['chance']:.0%}."
    )
