"""Routing: hidden states and probabilities by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from alignvec.base.load import load_base
from alignvec.base.prompts import Prompt
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.route import Router
from alignvec.route.hidden import hidden_means

QUERIES = [
    f"{start} {'leaf ' * (i % 5)}{i}?"
    for i in range(12)
    for start in ("how long to steep tea", "WHICH BARREL OF ALE", "is oil 5w30 or 0w20")
]
DOMAINS = ["tea", "ale", "oil"] * 12


@pytest.fixture(scope="module")
def base(tiny):
    return load_base(str(tiny()), "float32", "cpu")


def by_hand(base, query):
    """One query alone: no batch, no padding."""
    ids = torch.tensor([Prompt(base.tokenizer, query).tokens])
    with torch.no_grad():
        states = base.model(ids, output_hidden_states=True).hidden_states
    assert len(states) == 3  # two blocks and the embeddings
    return states[1][0].mean(0).numpy()


def test_hidden_means_are_those_of_each_query_alone(base):
    found = hidden_means(base.model, base.tokenizer, QUERIES)
    assert found.shape == (36, 32)
    for index in (0, 1, 17, 35):
        np.testing.assert_allclose(found[index], by_hand(base, QUERIES[index]), atol=2e-5)


def test_a_router_of_texts_reads_where_no_spaces_tell_the_words():
    medical = ["头疼应该吃什么药", "吃药以后头还疼怎么办", "去医院看医生要带什么", "医生让我多吃药"]
    legal = [
        "劳动合同没签怎么办",
        "房东不退押金可以起诉吗",
        "律师说合同无效怎么办",
        "起诉要找律师吗",
    ]
    domains = ["medical"] * 4 + ["legal"] * 4
    router = Router.fit(None, None, medical + legal, domains, reads="text")
    asked = ["头疼", "医生说要吃药", "合同纠纷", "找律师起诉房东"]
    assert router.domain(None, None, asked) == ["medical", "medical", "legal", "legal"]
    assert router.domain(None, None, []) == []


@pytest.mark.parametrize("count", [2, 3])
def test_probabilities_are_those_of_a_logistic_regression(base, count):
    """On standardised hidden states, with two domains and with more."""
    some = [i for i, domain in enumerate(DOMAINS) if domain in ("ale", "oil", "tea")[:count]]
    queries, domains = [QUERIES[i] for i in some], [DOMAINS[i] for i in some]
    domains[0] = next(d for d in domains if d != domains[0])  # one that it cannot learn
    router = Router.fit(base.model, base.tokenizer, queries, domains)
    hidden = hidden_means(base.model, base.tokenizer, queries)
    scaled = (hidden - hidden.mean(0)) / (hidden.std(0) + 1e-6)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(scaled, domains).predict_proba(scaled)
    assert router.domains == sorted(set(domains))
    found = router.probabilities(base.model, base.tokenizer, queries)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_below_the_threshold_a_query_has_no_domain(base):
    router = Router.fit(base.model, base.tokenizer, QUERIES, DOMAINS)
    found = router.probabilities(base.model, base.tokenizer, QUERIES)
    limit = float(np.median(found.max(1)))
    strict = Router(router.domains, router.weight, router.bias, limit)
    told = strict.domain(base.model, base.tokenizer, QUERIES)
    for row, domain in zip(found, told, strict=True):
        assert domain == (router.domains[row.argmax()] if row.max() >= limit else None)
    assert None in told
    assert set(told) - {None}


def test_a_router_of_texts_needs_no_model(tmp_path):
    """Words alone: what it was fitted on it tells apart, after a round trip too."""
    router = Router.fit(None, None, QUERIES, DOMAINS, reads="text")
    assert router.domain(None, None, QUERIES) == DOMAINS
    loaded = Router.load(router.save(tmp_path / "router"))
    assert loaded.reads == "text"
    new = ["a barrel of ale, please", "tea?", "what of oil 10w40"]
    assert loaded.domain(None, None, new) == ["ale", "tea", "oil"]
    np.testing.assert_array_equal(
        loaded.probabilities(None, None, new), router.probabilities(None, None, new)
    )
    with pytest.raises(AlignvecError, match="reader"):
        Router.fit(None, None, QUERIES, DOMAINS, reads="tea leaves")


def test_a_router_of_texts_with_the_weights_of_another_is_refused(base, tmp_path):
    folder = Router.fit(base.model, base.tokenizer, QUERIES, DOMAINS).save(tmp_path / "router")
    config = folder / "router.json"
    config.write_text(config.read_text().replace("hidden", "text"))
    with pytest.raises(AlignvecError, match="texts"):
        Router.load(folder)


def test_a_router_acts_on_its_own_base_alone(tiny, base, tmp_path):
    folder = Router.fit(base.model, base.tokenizer, QUERIES, DOMAINS).save(tmp_path / "router")
    own, other = (KnobModel.from_pretrained(tiny(seed=seed), {}, "float16") for seed in (0, 1))
    router = Router.load(folder)
    assert own.generate("tea?", router=router, max_new_tokens=2) is not None
    with pytest.raises(AlignvecError, match="hidden states of another base"):
        other.generate("tea?", router=router, max_new_tokens=2)
    of_texts = Router.fit(None, None, QUERIES, DOMAINS, reads="text")
    assert other.generate("tea?", router=of_texts, max_new_tokens=2) is not None
    config = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({**config, "base": None}))  # as before 0.2
    with pytest.raises(AlignvecError, match="make it anew"):
        own.generate("tea?", router=Router.load(folder), max_new_tokens=2)
