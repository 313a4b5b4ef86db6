"""Studies that nobody ran: folders of results by formula, for the report alone."""

import itertools
import json
import math

STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
FEW = (-1.0, 0.0, 0.5, 1.0)
DOMAINS = ("legal", "medical")
LEVELS = ("avoidance", "generic", "expert")
WAYS = ("along", "one-sided")
QUERIES = 40


def wilson(share, number):
    from alignvec.evaluate.intervals import wilson_interval

    return wilson_interval(share, number)


def softmax(values):
    top = [math.exp(value) for value in values]
    return [one / sum(top) for one in top]


def measured(levels, place, sharp=4.0, broken=0.1, read=True, answer="Made up: {level}."):
    """What would be measured of a knob at a place of the line from -1 to 1."""
    at = [-1 + 2 * i / max(1, len(levels) - 1) for i in range(len(levels))]
    share = softmax([-sharp * (place - one) ** 2 for one in at])
    judged = [one * (1 - broken) for one in softmax([-((place - one) ** 2) for one in at])]
    best = levels[share.index(max(share))]
    return {
        "rates": {
            "queries": QUERIES,
            "rate": dict(zip(levels, share, strict=True)),
            "interval": {
                level: wilson(one, QUERIES) for level, one in zip(levels, share, strict=True)
            },
            "score": dict.fromkeys(levels, -2.0),
        },
        "judged": {
            "answers": 16,
            "rate": dict(zip(levels, judged, strict=True)),
            "interval": {level: wilson(one, 16) for level, one in zip(levels, judged, strict=True)},
            "level": dict(zip(levels, judged, strict=True)),
            "untold": 0.0,
            "broken": broken,
            "reasons": {"repeats itself": 2},
        },
        "text": {
            "answers": 16,
            "repeated": 0.05 + broken / 3,
            "words": 61.25,
            "numbers": 0.01,
            "finished": 0.8125,
            "likelihood": -2.3456 if read else None,
        },
        "answers": [f"{answer.format(level=best)} ({n})" for n in range(4)],
    }


def safety(place, **more):
    return {
        "safety": measured(("unsafe", "safe"), place, 1.0, **more),
        "harmless": measured(("refusal", "helpful"), 0.6 - 0.5 * place, 1.0, **more),
    }


def results(domains=DOMAINS, levels=LEVELS, strength=1.0, query="Is it {n}?", **more):
    """Name -> result of a whole study.

    Args:
        strength: how much a knob does.
    """
    top, found = levels[-1], {}

    def make(place, **others):
        return measured(levels, max(-1.2, min(1.2, strength * place)), **more, **others)

    for domain in domains:
        found[f"base/{domain}"] = {
            "queries": [query.format(n=n) for n in range(4)],
            "answers": [f"The base of {domain}, {n}" for n in range(4)],
            "bounds": {"stated": "A text is broken if it is made up."},
        }
        for way, at in itertools.product(WAYS, STRENGTHS):
            if at or way == "along":
                broken = min(0.9, 0.1 + 0.2 * abs(at) ** 2 * (way == "one-sided"))
                found[f"single/{domain}/{way}/{at:g}"] = make(at, broken=broken)
        for kind, (index, level) in itertools.product(("system", "few-shot"), enumerate(levels)):
            found[f"single/{domain}/{kind}/{level}"] = make(0.4 * index)
        found[f"inference/{domain}"] = {
            way: {
                "read": read, "written": 60.5, "seconds": 1.0 + read / 200,
                "first_token": read / 400, "joules": None, "judged": make(1.0)["judged"],
            }
            for way, read in (("base", 30.0), ("system prompt", 150.0), ("few-shot", 700.0),
                              ("gated", 30.0), ("folded", 30.0))
        }  # fmt: skip
        for way in ("steering", "bipo", "dera", "soup", "scaled", "along"):
            each = {level: make(1.0) | {"strength": 1.0} for level in levels}
            found[f"baselines/{domain}/{way}"] = {"seconds": 12.5, "levels": each}
        kappa = {"value": 0.8, "interval": [0.6, 1.0], "texts": 10, "raw": 0.9}
        second = {"judged": make(1.0)["judged"], "unreadable": 1, "refused": 0}
        second |= {"orders": kappa, "with_classifier": kappa}
        found[f"judging/single/{domain}/along/1"] = second
        found[f"judging/baselines/{domain}/dera"] = dict.fromkeys(levels, second)
        for way in WAYS:
            found[f"ability/{domain}/{way}"] = [
                {"strength": at, "kl": 0.1 * at * at, "perplexity": 1 + 0.3 * at * at}
                for at in STRENGTHS
            ]
        for way, stage, at in itertools.product(WAYS, ("base", "safety-aligned"), FEW):
            found[f"transfer/{domain}/{way}/{stage}/{at:g}"] = {
                domain: make(at * (0.9 if stage == "base" else 0.7)), **safety(0.4 - 0.1 * at)
            }  # fmt: skip
        found[f"training/one-sided-{domain}"] = training()
    for way in WAYS:
        reach = {"along": 0.1, "one-sided": 0.9}[way]
        found[f"leak/{way}"] = [
            {
                "knob": knob, "home": knob,
                "effect": {
                    level: {one: 0.6 if one == knob else 0.6 * reach for one in domains}
                    for level in levels
                },
                "neutral": dict.fromkeys(levels, 0.0123),
                "normalised": dict.fromkeys(levels, reach) | {levels[0]: None},
            }
            for knob in domains
        ]  # fmt: skip
        for knob, (index, level) in itertools.product(domains, enumerate(levels)):
            place = -1 + 2 * index / max(1, len(levels) - 1)
            found[f"leak-written/{way}/{knob}/{level}"] = {
                one: make(place if one == knob else place * reach) for one in domains
            }
    for way, at in itertools.product(WAYS, STRENGTHS):
        if at or way == "along":
            found[f"safety/{way}/{at:g}"] = safety(at)
    for name in ("training/along-bank", "training/along-safety", "training/one-sided-safety"):
        found[name] = training()
    for kind in ("safety", "harmless"):
        found[f"base/{kind}"] = {"queries": ["Q"], "answers": ["A"]}
    found["transfer/stage"] = safety(0.5)
    found["data/statistics"] = {
        "records": 100, "domains": {domain: {"records": 50} for domain in domains},
        "queries": kind_of_text(), "levels": {level: kind_of_text() for level in levels},
    }  # fmt: skip
    found["data/cleaning"] = {"rejected": {"length": 2, "language": 0}}
    found["data/levels"] = {
        "accuracy": {"texts": 120, "share": 0.975, "interval": [0.93, 0.99], "level": {}},
        "told": {level: {level: 38, levels[0]: 2} for level in levels},
    }
    if len(domains) > 1:
        found |= several(domains, levels, make)
    assert top in levels
    return found


def several(domains, levels, make):
    found = {"behaviours/router": {"queries": 120, "right": 118}, "change": {
        "behaviours": len(levels) ** len(domains),
        "retrained": {"seconds": 27000.0, "each": 1000.0, "measured": ["a", "b", "c"]},
        "along": {"seconds": 1500.0, "times": 18.0},
        "one-sided": {"seconds": 3000.0, "search": 900.0, "times": 9.0},
    }}  # fmt: skip
    targets = [
        dict(zip(domains, some, strict=True))
        for some in itertools.product(levels, repeat=len(domains))
    ]
    for number, target in enumerate(targets):
        name = ",".join(f"{domain}={level}" for domain, level in target.items())
        for share, way in enumerate(("added", "routed", "grid", "prompting")):
            hit = (number + share) % 3
            found[f"behaviours/{way}/{name}"] = {"target": target, "domains": {
                domain: make(-1 + 2 * levels.index(level) / (len(levels) - 1) if hit else 0.0)
                for domain, level in target.items()
            }}  # fmt: skip
    found[f"behaviours/retrained/{name}"] = {
        "target": target, "domains": {domain: make(1.0) for domain in domains}
    }  # fmt: skip
    found["behaviours/search"] = {
        "passes": 216, "queries": 24, "seconds": {"search": 900.0, "verification": 10.0},
        "found": [
            {"target": target, "rates": {
                domain: make(-1.0 if number % 2 else 1.0)["rates"] for domain in domains
            }}
            for number, target in enumerate(targets)
        ],
    }  # fmt: skip
    for number in range(1, len(domains) + 1):
        for some in itertools.combinations(domains, number):
            found[f"together/{number}/{','.join(some)}"] = {
                domain: make(1.2 - 0.3 * number) for domain in domains
            }
    return found


def kind_of_text():
    return {
        "words": {"mean": 60.0, "sd": 5.0, "p5": 50, "p95": 70}, "distinct_2": 0.5,
        "readability_grade": {"mean": 9.5},
    }  # fmt: skip


def training():
    return {
        "seconds": 123.4, "pairs": 300, "versions": {}, "last": {"loss": 0.1, "margin": 4.2},
        "settings": {"method": "lora", "loss": "sigmoid", "rank": 16, "learning_rate": 2e-4,
                     "epochs": 1.0},
    }  # fmt: skip


PARTS = {"leak-written": "leak", "together": "behaviours", "base": "single"}


def part_of(name):
    """The part of the study that has a result."""
    first, second = name.split("/")[:2] if "/" in name else (name, "")
    return "safety" if second in ("safety", "harmless") else PARTS.get(first, first)


def write_study(folder, found=None, domains=DOMAINS, levels=LEVELS, base="made-up-1M", **told):
    """A study's folder as `alignvec reproduce` leaves it."""
    every = results(domains, levels) if found is None else found
    about = {
        "base": base, "data": "made-up.jsonl", "levels": list(levels), "domains": list(domains),
        "scale": {"strengths": STRENGTHS, "few": FEW}, "seed": 0, "reader": "another-1M",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(about | told))
    items = {}
    for name in results(domains, levels):
        items.setdefault(part_of(name), []).append(name)
    (folder / "items.json").write_text(json.dumps(items))
    for name, one in every.items():
        file = folder / "results" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"seconds": 1.5, "result": one}))
    return folder
