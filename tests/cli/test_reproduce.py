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
    needed = plan["bytes"]  # weights, gradients, two moments; three vectors turned together
    assert (needed["training"], needed["vectors"]) == (4 * 28e9, 3 * 28e9)
    assert 28e9 < needed["running"] + 1e9 < 58e9
    assert needed["disk"] < 20 * 28e9  # of 34 trainings: a checkpoint goes when its vector is there
    told = " ".join(run("reproduce", "--preset", "paper", "--dry-run").stdout.split())
    assert "112.0 GB of memory where all weights are trained" in told
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
        (["--model", "report", "-o", "x"], "cannot be called 'report'"),
        (["--model", "a/b", "--reader", "a/b", "-o", "x"], "'a/b' would read what it writes"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_written(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused("reproduce", *options)
    assert not list(tmp_path.iterdir())


def test_a_part_is_run_and_reported_and_a_second_run_goes_on(tmp_path):
    """A part that runs no model."""
    file = tmp_path / "drinks.jsonl"
    lines = [
        {"id": f"{n}", "domain": "tea", "query": f"what is {n}?", "a": "no idea", "b": "hot tea"}
        for n in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "study"
    told = ["--part", "data", "--data", file, "--levels", "a,b", "-o", out]
    for _ in range(2):
        assert str(out / "report" / "report.html") in run("reproduce", *told).stdout
        assert "40 records" in (out / "report" / "report.md").read_text()
        assert (out / "embedded" / "results" / "data" / "levels.json").exists()
    summary = json.loads(run("reproduce", *told, "--json").stdout)
    assert summary["report"] == str(out / "report" / "report.html")
    assert [one["base"] for one in summary["studies"]] == ["embedded"]
    assert {row["verdict"] for row in summary["claims"] if "verdict" in row} <= {"not measured"}
    assert "no results of this part" in summary["missing"]["single"][0]
    assert "data" not in summary["missing"]


def test_what_is_there_is_reported_when_a_later_model_fails(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"query": f"what is {n}?", "a": "no idea", "b": "hot tea"} for n in range(40)]
    (tmp_path / "drinks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    there, reader = str(tiny()), str(tiny(seed=1))
    told = ["--part", "data", "--data", "drinks.jsonl", "--levels", "a,b", "--reader", reader]
    models = ["--model", there, "--model", "./absent"]
    assert "no base at './absent'" in refused("reproduce", *told, *models, "-o", "study")
    assert "40 records" in (tmp_path / "study/report/report.md").read_text()


def test_a_dry_run_counts_no_results_of_another_study(tmp_path):
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "study.json").write_text('{"base": "embedded", "seed": 7}')
    assert "a study of other models" in refused("reproduce", "--dry-run", "-o", str(tmp_path))


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
