"""The objective by hand, and every method on a landscape whose best settings are known."""

import numpy as np
import pytest
from scipy.special import softmax

from alignvec.errors import AlignvecError
from alignvec.search.blackbox import Optuna
from alignvec.search.methods import Grid, method
from alignvec.search.objective import PENALTY, Objective
from alignvec.search.surface import Surface

LEVELS = ["avoidance", "generic", "expert"]
CENTRES = np.array([-1.0, 0.0, 1.0])
BOUNDS = np.array([[-2.0, 2.0], [-2.0, 2.0]])


class Landscape:
    """A scorer without a model: a level is likeliest where its domain's own knob is at its centre.

    Attributes: as of `Scorer`.
    """

    knobs = ("tea", "ale")
    levels = LEVELS

    def __init__(self, each=4, acting=None):
        self.domains = ["tea"] * each + ["ale"] * each
        self.own = np.array([0] * each + [1] * each)
        self.acting = np.ones((2 * each, 2), bool) if acting is None else acting
        self.seen = []

    def __len__(self):
        return len(self.domains)

    def __call__(self, strengths):
        each = np.broadcast_to(strengths, self.acting.shape) * self.acting
        self.seen.append(each.copy())
        turned = each[np.arange(len(self)), self.own]
        return -np.square(turned[:, None] - CENTRES)


def attained(scores, domains, target):
    """The definition, query by query."""
    share = softmax(20 * scores, axis=-1)
    rates = [
        np.mean(
            [row[LEVELS.index(level)] for row, d in zip(share, domains, strict=True) if d == domain]
        )
        for domain, level in target.items()
    ]
    return (min(rates) + sum(rates) / len(rates)) / 2


def test_attainment_is_between_the_least_and_the_mean_rate():
    scorer = Landscape(each=3)
    scores = np.random.default_rng(0).normal(scale=0.1, size=(6, 3))
    targets = [{"tea": "expert"}, {"tea": "generic", "ale": "avoidance"}, {"ale": "expert"}]
    found = Objective(scorer, BOUNDS).attainment(scores, targets)
    expected = [attained(scores, scorer.domains, target) for target in targets]
    np.testing.assert_allclose(found, expected)
    several = Objective(scorer, BOUNDS).attainment(np.stack([scores, scores[::-1]]), targets)
    assert several.shape == (2, 3)
    np.testing.assert_allclose(several[0], expected)


def test_the_penalty_is_that_of_all_knobs_at_their_bounds():
    scorer, bounds = Landscape(), np.array([[-1.0, 2.0], [-4.0, 3.0]])
    objective = Objective(scorer, bounds)
    strengths = np.array([[0.0, 0.0], [2.0, -4.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    scores = np.zeros((5, 8, 3))
    target = [{"tea": "expert"}]
    free = objective(strengths, scores, target, penalty=0.0)[:, 0]
    np.testing.assert_allclose(free, 1 / 3)
    paid = (free - objective(strengths, scores, target, penalty=0.5)[:, 0]) / 0.5
    np.testing.assert_allclose(paid, [0, 1, 0.25 / 2, 0.25 / 2, 0.5625 / 2])
    default = free - objective(strengths, scores, target)[:, 0]
    np.testing.assert_allclose(default, PENALTY * paid)


TARGETS = [
    {"tea": "expert", "ale": "avoidance"},
    {"tea": "generic", "ale": "expert"},
    {"tea": "avoidance"},
]


def test_a_grid_finds_the_best_of_its_points():
    scorer = Landscape()
    grid = Grid(Objective(scorer, BOUNDS), passes=30)
    assert len(scorer.seen) == 25  # five a knob, the finest that fits
    assert sorted({float(x) for x, _ in grid.points}) == [-2, -1, 0, 1, 2]
    np.testing.assert_allclose(grid.solve(TARGETS), [[1, -1], [0, 1], [-1, 0]])
    assert len(Grid(Objective(Landscape(each=1), BOUNDS)).points) == 729
    assert len(scorer.seen) == 25


def test_a_higher_penalty_turns_the_knobs_less():
    objective = Objective(Landscape(), BOUNDS)
    for found in (Grid(objective, 289), Surface(objective, 32)):
        turned = [np.abs(found.solve(TARGETS[:1], p)).sum() for p in (0.001, 0.5, 2.0, 50.0)]
        assert turned == sorted(turned, reverse=True)
        assert turned[0] > 1
        assert turned[-1] == pytest.approx(0, abs=0.05)


def test_a_surface_goes_through_what_it_visited_and_finds_what_the_grid_finds():
    scorer = Landscape(each=2)
    surface = Surface(Objective(scorer, BOUNDS), passes=40, seed=1)
    points = np.array(scorer.seen)  # [P, Q, K]
    assert points.shape == (40, 4, 2)
    assert not points[0].any()  # the base
    assert (np.abs(points) <= 2).all()
    assert len({tuple(p) for p in points[1:].reshape(-1, 2)}) == 39 * 4  # no two alike
    for visited in (0, 7, 39):
        for query in range(4):
            found = surface.scores(points[visited, query][None])[0, query]
            truth = -np.square(points[visited, query, scorer.own[query]] - CENTRES)
            np.testing.assert_allclose(found, truth, atol=1e-6)
    exact = Grid(Objective(Landscape(each=2), BOUNDS), 41**2)
    objective = exact.objective
    for target, found, best in zip(
        TARGETS, surface.solve(TARGETS), exact.solve(TARGETS), strict=True
    ):
        got, most = (
            objective(at[None], objective.scorer(at)[None], [target])[0, 0] for at in (found, best)
        )
        assert got > most - 0.02
        assert (np.abs(found) <= 2).all()


def test_a_surface_begins_where_training_put_the_levels():
    """Each query goes there, at no place twice; a knob that was trained elsewhere roams."""
    scorer = Landscape(each=2)
    places = [[-1.0, 0.5, 1.0, 9.0], []]  # one lies beyond the bounds
    Surface(Objective(scorer, BOUNDS, places), passes=12, seed=1)
    points = np.array(scorer.seen)
    for query in range(4):
        assert sorted(points[1:4, query, 0]) == [-1.0, 0.5, 1.0]
        assert len(set(points[1:4, query, 1])) == 3
    both = Objective(Landscape(each=2), BOUNDS, [[-1.0, 0.0, 1.0]] * 2)
    found = Surface(both, passes=32, seed=1).solve(TARGETS)
    wanted = Grid(both, 41**2).solve(TARGETS)
    for target, at, best in zip(TARGETS, found, wanted, strict=True):
        got, most = (both(s[None], both.scorer(s)[None], [target])[0, 0] for s in (at, best))
        assert got > most - 0.02


def test_a_surface_takes_eight_passes_for_each_knob_that_acts_on_a_query():
    routed = np.array([[True, False]] * 4 + [[False, True]] * 4)
    for acting, passes in ((None, 16), (routed, 8)):
        scorer = Landscape(acting=acting)
        Surface(Objective(scorer, BOUNDS))
        assert len(scorer.seen) == passes


def test_queries_that_no_knob_acts_on_keep_their_scores():
    acting = np.array([[True, True]] * 4 + [[False, False]] * 4)
    surface = Surface(Objective(Landscape(acting=acting), BOUNDS), passes=8)
    found = surface.scores(np.array([[2.0, -2.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found[:, 4:], np.broadcast_to(-np.square(CENTRES), (2, 4, 3)))
    assert np.abs(found[0, :4] - found[1, :4]).max() > 1


def test_optuna_starts_at_the_base_and_comes_near():
    scorer = Landscape(each=2)
    bounds = np.array([[0.5, 2.0], [-2.0, 2.0]])
    found = Optuna(Objective(scorer, bounds), passes=40, seed=0).solve(TARGETS[:2])
    np.testing.assert_allclose(scorer.seen[0][0], [0.5, 0.0])  # the nearest within the bounds
    assert len(scorer.seen) == 80
    objective = Objective(Landscape(each=2), bounds)
    for target, setting in zip(TARGETS[:2], found, strict=True):
        value = objective(setting[None], objective.scorer(setting)[None], [target])[0, 0]
        base = objective(np.array([[0.5, 0.0]]), objective.scorer([0.5, 0.0])[None], [target])[0, 0]
        assert value > base
        assert bounds[0, 0] <= setting[0] <= bounds[0, 1]


def test_methods_go_by_their_names():
    for name, kind in (("surface", Surface), ("grid", Grid), ("optuna", Optuna)):
        assert isinstance(method(name, Objective(Landscape(each=1), BOUNDS), 4, 0), kind)
    with pytest.raises(AlignvecError, match="unknown method 'gird'; did you mean 'grid'"):
        method("gird", Objective(Landscape(), BOUNDS), 4, 0)
