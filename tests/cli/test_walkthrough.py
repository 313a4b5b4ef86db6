"""The demo's way, on a tiny model: every piece is there, and a second run takes what is there."""

import json

import pytest

from alignvec.cli import walkthrough
from alignvec.errors import AlignvecError
from conftest import refused, run


@pytest.fixture
def small(tiny, monkeypatch):
    monkeypatch.setattr(walkthrough, "EMBEDDED", str(tiny(max_position_embeddings=4096)))
    monkeypatch.setattr(walkthrough, "QUERIES", 4)
    monkeypatch.setattr(walkthrough, "HELD_OUT", 3)
    monkeypatch.setattr(walkthrough, "STRENGTHS", [-1.0, 0.0, 1.0])


def test_the_whole_way(small, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    said = run("demo", "--out", out, "--domain", "legal").stdout
    assert "1. Training: 4 legal questions" in said
    assert "from -1 to 1, on 3 questions" in said
    aligned = json.loads((out / "legal-aligned" / "training.json").read_text())
    assert aligned["pairs"] == 8
    assert aligned["rows"] == 4 * 3  # every question at every level
    assert aligned["domain"] == "legal"
    assert (out / "legal-aligned" / "training.png").exists()
    assert (
        json.loads((out / "legal-av" / "alignment_vector.json").read_text())["kind"] == "low_rank"
    )
    sweep = json.loads((out / "legal-sweep.json").read_text())
    assert [point["strength"] for point in sweep["points"]] == [-1, 0, 1]
    for point, line in zip(sweep["points"], ("-1.00", "+0.00", "+1.00"), strict=True):
        (row,) = [one for one in said.splitlines() if one.strip().startswith(line)]
        for level, rate in point["rate"].items():
            assert f"{level} {'#' * round(10 * rate)}" in row
            assert f"{rate:.2f}" in row
        assert ("suffers" in row) is not point["sound"]
    assert (out / "legal-sweep.png").stat().st_size > 10_000
    answers = json.loads((out / "legal-answers.json").read_text())
    assert list(answers["answers"]) == ["-1.0", "0.5", "1.0"]
    assert all(answers["answers"].values())

    before = (out / "legal-av" / "adapter_model.safetensors").stat().st_mtime_ns
    again = run("demo", "--out", out, "--domain", "legal").stdout
    assert "The legal vector is already in" in again
    assert (out / "legal-av" / "adapter_model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(walkthrough, "QUERIES", 5)
    assert "holds another demo" in refused("demo", "--out", out, "--domain", "legal")


def test_a_demo_that_cannot_be_is_one_line(small, tmp_path):
    (tmp_path / "file").touch()
    assert "takes a folder" in refused("demo", "--out", tmp_path / "file")
    assert "'cooking'" in refused("demo", "--out", tmp_path / "demo", "--domain", "cooking")
    with pytest.raises(AlignvecError):
        walkthrough.run(tmp_path / "file", "medical")
