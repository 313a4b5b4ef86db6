"""Which level is preferred under which strengths: the pairs that place levels along the knobs.

A knob trained at lambda = 1 alone says nothing of the strengths that it is turned to later, nor of
the knobs beside it. Here every record is met at a strength of its own domain's knob, the place of
one of its levels, and prefers that level there to every other one, whatever the other knobs are
turned to: their strengths are drawn at random. At every strength that response is preferred, too,
to itself gone round in circles or strewn with numbers: what a knob makes likelier must not be what
greedy decoding of a small model falls into by itself. A share of the rows is held: a record whose
own knob is at 0, and everyday questions under any setting, stay as the base has them.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from alignvec.data.line import JITTER, Places
from alignvec.data.pairs import PreferencePair
from alignvec.data.records import Record

EVERYDAY = [  # questions of no domain, with an answer
    line.split("\t")
    for line in (resources.files("alignvec.data") / "builtin" / "everyday.txt")
    .read_text("utf-8")
    .splitlines()
]

_ROUND = (1, 2, 5, 10, 15, 20, 50, 100)  # numbers that texts are fond of


def pairs_along(
    records: Mapping[str, Sequence[Record]],
    places: Places,
    passes: float = 1.0,
    seed: int = 0,
    held: Sequence[Record] = (),
    share: float = 0.2,
    beside: Sequence[str] = (),
) -> list[PreferencePair]:
    """The pairs of a training along one or several knobs, in the order in which they are met.

    A row gives as many pairs as there are levels, next to each other: its level against every other
    one and against its own response broken, by `circling` or `counting`. From one pass to the next
    a record changes its level.

    Args:
        records: knob -> the records that it answers for.
        places: level -> its strength.
        passes: over all records.
        held: records that no knob may move.
        share: of the rows that are held, where there is anything to hold: several knobs, or `held`.
        beside: further knobs, trained before, that are turned too.
    """
    drawn = random.Random(seed)
    knobs, levels = [*records, *beside], list(places)
    turns = {
        (knob, record.id): drawn.sample(levels, len(levels))
        for knob, some in records.items()
        for record in some
    }
    holding = len(knobs) > 1 or bool(held)
    pairs: list[PreferencePair] = []
    for pass_number, knob, record in _met(records, passes, drawn):
        others = {other: _other(places, drawn) for other in knobs}
        if holding and drawn.random() < share:
            pairs += _held(knob, record, held, others, places, drawn)
            continue
        level = turns[knob, record.id][pass_number % len(levels)]
        strengths = tuple({**others, knob: _near(places[level], drawn)}.values())
        chosen = record.levels[level]
        rejected = {other: text for other, text in record.levels.items() if other in levels}
        rejected[level] = drawn.choice([circling, counting])(chosen, drawn)
        for other, text in rejected.items():
            name, broken = f"{record.id}:{level}>{other}", other == level
            pairs.append(
                PreferencePair(
                    name, record.prompt, chosen, text, strengths, broken=broken, knob=knob
                )
            )
    return pairs


def circling(text: str, drawn: random.Random) -> str:
    """A text that from some point on goes round in circles, as long as it was.

    The piece that comes again is 2 to 8 words long, or as many characters in a script without
    spaces. Numbers in it change at times: a text that counts goes round in circles too.
    """
    parts = _parts(text)
    length = min(drawn.randint(2, 8), len(parts))
    begin = drawn.randint(0, max(0, len(parts) // 2 - length))
    kept, piece = parts[: begin + length], parts[begin : begin + length]

    def recounted(part: str) -> str:
        return re.sub(r"\d+", lambda it: drawn.choice([it[0], str(drawn.randint(1, 99))]), part)

    for part in itertools.cycle(piece):
        if len(kept) >= max(len(parts), begin + 2 * length):
            return "".join(kept).rstrip()
        kept.append(recounted(part))
    return text


def counting(text: str, drawn: random.Random) -> str:
    """A text with numbers in the place of every eighth word, or of a part of it.

    Few tokens make all numbers, so that one of them is easily the likeliest where many words would
    do; greedy answers in a style that has numbers are then made of them. More numbers would be
    told from the text at once, and teach less.
    """
    parts = _parts(text)

    def counted(part: str) -> str:
        number = str(drawn.choice([*_ROUND, drawn.randint(1, 99)]))
        form = drawn.choice(["{0}{2}", "{0}%{2}", "{0}-{0}{2}", "{0}-{1}{2}"])
        return form.format(number, part.rstrip(), part[len(part.rstrip()) :])

    for index in drawn.sample(range(len(parts)), math.ceil(len(parts) / 8)):
        parts[index] = counted(parts[index])
    return "".join(parts)


def _parts(text: str) -> list[str]:
    """The words with the spaces behind them; the characters, of a script that has few spaces."""
    words = re.findall(r"\S+\s*", text)
    return words if len(words) >= 8 else list(text)


def _held(
    knob: str,
    record: Record,
    held: Sequence[Record],
    others: Mapping[str, float],
    places: Places,
    drawn: random.Random,
) -> list[PreferencePair]:
    """As many pairs as a row has, of what has to stay where the base has it.

    A record whose own knob is at 0, a record that no knob may move, or everyday questions, under
    any setting; the latter two are all there is for a knob alone.
    """
    levels = list(places)
    kind = drawn.choice(["own"] * (len(others) > 1) + ["held"] * bool(held) + ["everyday"])
    if kind == "own":
        others = {**others, knob: 0.0}
    else:  # at 0 there is nothing to hold
        others = {other: _near(drawn.choice([*places.values()]), drawn) for other in others}
    strengths = tuple(others.values())
    if kind == "everyday":
        said = drawn.sample(EVERYDAY, len(levels))
        return [PreferencePair(f"everyday:{q}", q, a, a, strengths, hold=True) for q, a in said]
    if kind == "held":
        record, knob = drawn.choice(held), ""
    return [
        PreferencePair(
            f"{record.id}:{one}={other}",
            record.prompt,
            record.levels[one],
            record.levels[other],
            strengths,
            hold=True,
            knob=knob,
        )
        for one, other in itertools.pairwise([*levels, levels[0]])
    ]


def _met(
    records: Mapping[str, Sequence[Record]], passes: float, drawn: random.Random
) -> Iterator[tuple[int, str, Record]]:
    """(number of the pass, knob, record), every record once a pass, in an order of its own."""
    every = [(knob, record) for knob, some in records.items() for record in some]
    left = math.ceil(passes * len(every))
    for number in itertools.count():
        if left <= 0:
            return
        for knob, record in drawn.sample(every, len(every))[:left]:
            yield number, knob, record
        left -= len(every)


def _near(place: float, drawn: random.Random) -> float:
    return place * drawn.uniform(1 - JITTER, 1 + JITTER)


def _other(places: Places, drawn: random.Random) -> float:
    """A strength of a knob that a row is not about: at 0 as often as at each of the levels."""
    return _near(drawn.choice([0.0, *places.values()]), drawn)
