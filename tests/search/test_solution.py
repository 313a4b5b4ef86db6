"""What a solution says of itself, and how solutions of one domain are put together."""

import json

import numpy as np

from alignvec.data import Record, split_of
from alignvec.evaluate.rates import Rates
from alignvec.evaluate.retention import Retention
from alignvec.search.search import _combined, _single_targets, split_for_search
from alignvec.search.solution import SearchResult, Solution


def rates(avoidance, generic, expert):
    level = {"avoidance": avoidance, "generic": generic, "expert": expert}
    return Rates(20, level, dict.fromkeys(level, (0.0, 1.0)), level)


def solution(tea, ale, target=None):
    target = target or {"tea": "expert", "ale": "avoidance"}
    return Solution(target, {"t": 1.25, "a": -0.5}, {"tea": rates(*tea), "ale": rates(*ale)},
                    Retention(0.1, 1.2))  # fmt: skip


def test_reached_is_the_highest_rate_in_every_domain():
    assert solution((0.2, 0.3, 0.5), (0.4, 0.35, 0.25)).reached
    assert not solution((0.2, 0.5, 0.3), (0.9, 0.1, 0.0)).reached
    assert not solution((0.2, 0.3, 0.5), (0.1, 0.9, 0.0)).reached
    assert not solution((0.5, 0.0, 0.5), (0.9, 0.1, 0.0)).reached  # a draw is no win
    assert solution((0.2, 0.3, 0.5), (0.1, 0.9, 0.0), {"tea": "expert"}).reached


def test_clearly_is_at_least_six_tenths_everywhere():
    assert solution((0.2, 0.2, 0.6), (0.6, 0.2, 0.2)).reached_clearly
    assert not solution((0.2, 0.2, 0.6), (0.59, 0.2, 0.21)).reached_clearly
    assert not solution((0.6, 0.2, 0.2), (0.9, 0.1, 0.0)).reached_clearly


def test_a_solution_in_words():
    reached = solution((0.2, 0.3, 0.5), (0.4, 0.35, 0.25))
    assert str(reached) == "tea=expert,ale=avoidance: t=1.25,a=-0.50"
    assert reached.least == ("ale", 0.4)
    missed = solution((0.2, 0.5, 0.3), (0.9, 0.1, 0.0))
    assert str(missed) == (
        "tea=expert,ale=avoidance is not reachable; nearest is t=1.25,a=-0.50 (tea: expert at 0.30)"
    )


def test_a_result_in_json_and_in_a_line():
    one, other = solution((0, 0, 1), (1, 0, 0)), solution((1, 0, 0), (1, 0, 0))
    close = solution((0.3, 0.2, 0.5), (1, 0, 0))
    result = SearchResult("grid", True, 24, 8, {"search": 12.4, "verification": 3.0},
                          [one, close, other], [other])  # fmt: skip
    assert result.summary == (
        "2 of 3 reached, 1 with rates of at least 0.6; 8 passes over 24 queries, 12 s"
    )
    found = json.loads(json.dumps(result.to_json()))
    assert list(found) == [
        "method", "routed", "queries", "verified", "passes", "seconds", "found", "front",
    ]  # fmt: skip
    assert [(f["reached"], f["firmly"]) for f in found["found"]] == [
        (True, True), (True, False), (False, False),
    ]  # fmt: skip
    first = found["found"][0]
    assert first["target"] == {"tea": "expert", "ale": "avoidance"}
    assert first["setting"] == {"t": 1.25, "a": -0.5}
    assert first["rates"]["tea"]["rate"]["expert"] == 1
    assert first["retained"] == {"kl": 0.1, "perplexity": 1.2}
    assert len(found["front"]) == 1


def test_targets_fall_apart_into_domains_and_settings_come_together():
    targets = [{"tea": "expert", "ale": "generic"}, {"tea": "expert", "ale": "expert"}]
    single = _single_targets(targets)
    assert single == [{"tea": "expert"}, {"ale": "generic"}, {"ale": "expert"}]
    settings = np.array([[1.0, 9.0, 2.0], [9.0, 0.5, 9.0], [9.0, 1.5, 9.0]])
    of_knob = ["tea", "ale", "tea"]
    np.testing.assert_array_equal(_combined(targets[0], single, settings, of_knob), [1, 0.5, 2])
    np.testing.assert_array_equal(_combined(targets[1], single, settings, of_knob), [1, 1.5, 2])
    alone = _combined({"ale": "expert"}, single, settings, of_knob)
    np.testing.assert_array_equal(alone, [0, 1.5, 0])  # a domain that is not named stays the base


def test_what_is_searched_is_never_verified():
    records = [
        Record(id=f"{domain}{i}", domain=domain, query=f"{domain} {i}?", levels={"a": "x"})
        for domain in ("tea", "ale", "oil") for i in range(60)
    ]  # fmt: skip
    for source, searched in (("builtin", {"validation"}), ("my.jsonl", {"train", "validation"})):
        some, held_out = split_for_search(records, source, ["tea", "ale"])
        assert {split_of(record.id) for record in some} == searched
        assert {split_of(record.id) for record in held_out} == {"test"}
        assert {record.domain for record in [*some, *held_out]} == {"tea", "ale"}
        wanted = [r for r in records if r.domain != "oil" and split_of(r.id) in searched]
        assert some == wanted
    few, all_of_test = split_for_search(records, "my.jsonl", ["tea", "ale"], most=3)
    assert [record.domain for record in few] == ["tea"] * 3 + ["ale"] * 3
    assert all_of_test == held_out


def test_a_query_of_the_test_part_is_not_searched_on_under_another_id():
    def record(number, query):
        return Record(id=f"r{number}", domain="tea", query=query, levels={"a": "b"})

    records = [record(n, f"How long, {n}?") for n in range(30)]
    again = [record(n + 100, f" how LONG, {n}?") for n in range(30)]
    some, held_out = split_for_search([*records, *again], "my.jsonl", ["tea"])
    asked = [{" ".join(one.query.split()).lower() for one in part} for part in (some, held_out)]
    assert asked[0].isdisjoint(asked[1])
    assert asked[0] | asked[1] == {one.query.lower() for one in records}
