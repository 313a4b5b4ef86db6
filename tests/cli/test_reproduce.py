"""`alignvec reproduce` as a user runs it."""

import json

import pytest

from conftest import refused, run


def test_what_the_paper_takes_is_told_without_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("reproduce", "--preset", "paper", "--dry-run", "--json").stdout)
    (plan,) = found
    assert plan["parameters"] == 7e9
    assert plan["parts"]["training"]["rows_trained"] > 400
    assert all(part["done"] == 0 for part in plan["parts"].values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give -o FOLDER, or --dry-run"),
        (["--preset", "smal", "-o", "x"], "did you mean 'small'"),
        (["--part", "singel", "-o", "x"], "did you mean 'single'"),
        (["--data", "nothing.jsonl", "-o", "x"], "nothing.jsonl"),
        (["--judge", "gpt", "-o", "x"], "give both"),
        (["--model", "embedded", "--model", "embedded", "-o", "x"], "two models"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_written(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused("reproduce", *options)
    assert not list(tmp_path.iterdir())


def test_hostile_names_stay_within_the_folder(tmp_path):
    file = tmp_path / "bad.jsonl"
    lines = [
        {"id": f"{n}", "domain": "../../out", "query": f"what is {n}?", "a": "x y", "b": "z w"}
        for n in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    told = refused("reproduce", "--data", str(file), "--levels", "a,b", "-o", str(tmp_path / "o"))
    assert "cannot be the name of a file" in told
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
