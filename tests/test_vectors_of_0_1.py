"""Vectors that alignvec 0.1.0 made, before its modules moved: they load, fold and score as then.

`fixtures/vectors_0_1` holds a tiny base, its vectors in three forms, and what 0.1.0 measured.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alignvec import AlignmentVector, KnobModel
from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.likelihood import response_scores
from alignvec.data import read_records
from alignvec.evaluate.rates import response_rows
from alignvec.vector.fold import fold

FOLDER = Path(__file__).parent / "fixtures" / "vectors_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("form", EXPECTED)
def test_a_vector_of_0_1_does_what_it_did(form, tmp_path):
    expected, base = EXPECTED[form], FOLDER / "base"
    vector = AlignmentVector.from_pretrained(FOLDER / form)
    if form != "low_rank":  # a product of factors may differ in its last bit on another CPU
        assert vector.fingerprint() == expected["fingerprint"]
    assert vector.norm() == pytest.approx(expected["norm"], rel=1e-6)
    fold(base, [(vector, 0.7)], tmp_path / "folded")
    theta, folded = CheckpointWeights(base), CheckpointWeights(tmp_path / "folded")
    for name, delta in vector.deltas.items():
        torch.testing.assert_close(folded[name], theta[name] + 0.7 * delta.dense())
    model = KnobModel.from_pretrained(base, {"tea": vector}, "float32", "cpu")
    rows = response_rows(
        model.tokenizer,
        list(read_records(FOLDER / "tea.jsonl")),
        ["avoidance", "generic", "expert"],
    )
    with model.at({"tea": 0.7}):
        np.testing.assert_allclose(response_scores(model.model, rows), expected["scores"], 1e-5)
    answers = model.generate(["how long?"] * 2, [{"tea": -1}, {"tea": 1.5}], max_new_tokens=12)
    assert answers == expected["answers"]
