"""What a set of records is like, in numbers: lengths, diversity, readability, topics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import regex
import textstat
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.tree import DecisionTreeClassifier

from alignvec.data.quality.expected import Expected, expected_of
from alignvec.data.quality.lines import read_lines
from alignvec.data.quality.rules import is_whole
from alignvec.data.records import Record
from alignvec.data.spectrum import Spectrum
from alignvec.data.splits import SPLITS
from alignvec.data.words import JOINED, LONE, lone_letters, word_count, word_range
from alignvec.errors import AlignvecError

_FOLDS = 5
_DEPTH = 3  # of the tree that guesses a level from a length
_HINTS, _GIVES_AWAY = 0.1, 0.5  # of the way from chance to always right
_NOISE = 3  # standard deviations of guesses by chance
_WORD = regex.compile(rf"{LONE}|{JOINED}+(?:['’]{JOINED}+)*", regex.V1)
_SAMPLE = 500  # texts whose nearest neighbour is looked for


def statistics(
    source: str | Path, spectra: Sequence[Spectrum] = (), levels: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that `data stats` reports. Levels of the same name are taken together.

    Args:
        source, spectra, levels: as `clean` takes them. Lines that are no record with all its levels
            are left out.

    Raises:
        AlignvecError: nothing is left, or a spectrum fits no domain.
    """
    lines = read_lines(source)
    everything = [line.record for line in lines if line.record]
    expected = expected_of(everything, spectra, levels)
    records = [record for record in everything if not is_whole(record, expected[record.domain])]
    if not records:
        raise AlignvecError(f"no record of {source} has all its levels")
    domains = defaultdict[str, list[Record]](list)
    for record in records:
        domains[record.domain].append(record)
    shapes = dict.fromkeys(expected[record.domain].levels for record in records)
    names = dict.fromkeys(level for shape in shapes for level in shape)
    return {
        "records": len(records),
        "left_out": len(lines) - len(records),
        "splits": _splits(records),
        "domains": {domain: _domain(group, expected[domain]) for domain, group in domains.items()},
        "topics": _topic_distribution(record.topic for record in records),
        "personas": len({record.persona for record in records if record.persona}),
        "queries": _texts([record.query for record in records]),
        "levels": {
            name: _texts([r.levels[name] for r in records if name in expected[r.domain].levels])
            for name in names
        },
        "length_check": [
            length_check([r for r in records if expected[r.domain].levels == shape], shape)
            for shape in shapes
        ],
    }


def _splits(records: Iterable[Record]) -> dict[str, int]:
    counts = Counter(record.split for record in records)
    return {split: counts[split] for split in SPLITS}


def _domain(records: Sequence[Record], expected: Expected) -> dict[str, Any]:
    return {
        "records": len(records),
        "splits": _splits(records),
        "language": expected.language,
        "levels": list(expected.levels),
        "topics": _topic_distribution(record.topic for record in records),
        "personas": len({record.persona for record in records if record.persona}),
        "outside_band": _outside_band(records, expected),
    }


def _outside_band(records: Sequence[Record], expected: Expected) -> dict[str, float] | None:
    """Of each level the share of responses that are shorter or longer than the spectrum wants."""
    if expected.spectrum is None:
        return None
    shares = {}
    for level in expected.levels:
        least, most = expected.spectrum.band(level)
        ranges = [word_range(record.levels[level]) for record in records]
        within = sum(least <= longest and fewest <= most for fewest, longest in ranges)
        shares[level] = 1 - within / len(records)
    return shares


def _topic_distribution(topics: Iterable[str]) -> dict[str, Any]:
    """Evenness is the entropy over that of as many topics of equal size: 1 is all alike."""
    counts = Counter(topic for topic in topics if topic)
    if not counts:
        return {"distinct": 0, "evenness": None, "largest": None, "largest_share": None}
    shares = [count / counts.total() for count in counts.values()]
    entropy = -sum(share * log(share) for share in shares)
    (largest, count), *_ = counts.most_common(1)
    return {
        "distinct": len(counts),
        "evenness": min(entropy / log(len(counts)), 1.0) if len(counts) > 1 else 0.0,
        "largest": largest,
        "largest_share": count / counts.total(),
    }


def _texts(texts: Sequence[str]) -> dict[str, Any]:
    """Of texts of one kind."""
    words = [_WORD.findall(text.lower()) for text in texts]
    openings = Counter(" ".join(one[:3]) for one in words)
    (opening, count), *_ = openings.most_common(1)
    lengths = np.array([word_count(text) for text in texts])
    grades = [textstat.automated_readability_index(text) for text in texts]
    spaced = 2 * sum(map(lone_letters, texts)) < sum(map(len, texts))  # else they mean nothing
    quantiles = {f"p{q}": float(np.percentile(lengths, q)) for q in (5, 25, 50, 75, 95)}
    return {
        "texts": len(texts),
        "words": {
            "mean": float(lengths.mean()),
            "sd": float(lengths.std()),
            "min": int(lengths.min()),
            **quantiles,
            "max": int(lengths.max()),
            "counts": {str(n): count for n, count in sorted(Counter(lengths.tolist()).items())},
        },
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "commonest_opening": opening,
        "commonest_opening_share": count / len(texts),
        "nearest_similarity": _nearest(words),
        "readability_grade": {
            "mean": float(np.mean(grades)) if spaced else None,
            "sd": float(np.std(grades)) if spaced else None,
        },
    }


def _distinct(texts: Iterable[Sequence[str]], run: int) -> float:
    """Different runs of words over all; the more texts, the lower."""
    runs = Counter(
        tuple(words[at : at + run]) for words in texts for at in range(len(words) - run + 1)
    )
    return len(runs) / (runs.total() or 1)


def _nearest(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean cosine (TF-IDF of words) of a text and the one most like it, over a sample."""
    if len(texts) < 2 or not any(texts):
        return None
    vectors = TfidfVectorizer(analyzer=list).fit_transform(texts)
    sample = vectors[:: -(-len(texts) // _SAMPLE)]
    neighbours = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors)
    return float(1 - neighbours.kneighbors(sample)[0][:, 1].mean())


def length_check(records: Sequence[Record], levels: Sequence[str]) -> dict[str, Any]:
    """How often the level is guessed right from the number of words alone, on unseen records.

    The verdict goes by the way from chance to always right: below 10%, or within what guessing may
    give, the length does not give the level away; below 50% it hints at it; from there on it gives
    it away.
    """
    chance = 1 / len(levels)
    result = {"levels": list(levels), "records": len(records), "chance": chance}
    if len(records) < 2 * _FOLDS or len(levels) < 2:
        return {**result, "accuracy": None, "verdict": "not checked: too few records or levels"}
    words = np.array([[word_count(r.levels[level])] for r in records for level in levels])
    wanted = np.tile(np.arange(len(levels)), len(records))
    folds = PredefinedSplit(np.repeat(np.arange(len(records)) % _FOLDS, len(levels)))
    tree = DecisionTreeClassifier(max_depth=_DEPTH, random_state=0)
    accuracy = float((cross_val_predict(tree, words, wanted, cv=folds) == wanted).mean())
    noise = _NOISE * (chance * (1 - chance) / len(wanted)) ** 0.5
    verdict = "length does not give the level away"
    if accuracy - chance >= _GIVES_AWAY * (1 - chance):
        verdict = "length gives the level away"
    elif accuracy - chance >= max(_HINTS * (1 - chance), noise):
        verdict = "length hints at the level"
    return {**result, "accuracy": accuracy, "verdict": verdict}
