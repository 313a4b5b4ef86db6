"""lm_eval on a base with knobs: the base's numbers at 0, those of the folded model elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.tasks import TaskManager

from alignvec.errors import AlignvecError
from alignvec.evaluate.harness import KnobLM
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import run

CHOICE = """\
task: tea
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a few minutes", "ask a shop", "180 s"]
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with a task of 12 questions, as --include_path takes it."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"question": f"how long to steep tea {n}?", "answer": n % 3} for n in range(12)]
    (folder / "tea.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tea.yaml").write_text(CHOICE.format(data=folder / "tea.jsonl"))
    return folder


@pytest.fixture(scope="module")
def vectors(tiny, nudged, tmp_path_factory):
    """The folders of two vectors of the tiny Llama."""
    folder = tmp_path_factory.mktemp("vectors")
    vector = AlignmentVector.extract(tiny(), nudged())
    vector.save_pretrained(folder / "one")
    (-0.5 * vector).save_pretrained(folder / "other")
    return folder


def evaluated(task, model, told, **options):
    """The task's numbers, each question's log-likelihoods and prompt, and the configuration."""
    tasks = TaskManager(include_path=str(task), include_defaults=False)  # those are 26 000 files
    done = simple_evaluate(
        model=model, model_args=key_val_to_dict(told), tasks=["tea"], task_manager=tasks,
        batch_size=4, device="cuda:0", bootstrap_iters=0, **options,
    )  # fmt: skip
    lines = done["samples"]["tea"]
    answers = [[choice[0][0] for choice in one["resps"]] for one in lines]
    prompts = [one["arguments"][0][0] for one in lines]
    return (done["results"], answers, prompts), done["config"]


@pytest.mark.parametrize("chat", [False, True])
def test_the_base_at_zero_and_the_folded_model_at_a_setting(chat, task, tiny, vectors, tmp_path):
    pair = [f"--vector=k={vectors / 'one'}", f"--vector=l={vectors / 'other'}"]
    run("fold", tiny(), *pair, "--set", "k=0.7,l=-0.25", "-o", tmp_path / "folded")
    knobs = f"base={tiny()},dtype=float32,vector=k:{vectors / 'one'}+l:{vectors / 'other'}"
    asked = {
        "base": ("hf", f"pretrained={tiny()},dtype=float32"),
        "zero": ("alignvec", knobs),
        "folded": ("hf", f"pretrained={tmp_path / 'folded'},dtype=float32"),
        "turned": ("alignvec", f"{knobs},set=k=0.7+l=-0.25"),
    }
    found = {}
    for name, (model, told) in asked.items():
        found[name], config = evaluated(task, model, told, apply_chat_template=chat)
    assert found["zero"] == found["base"]
    assert found["turned"] == found["folded"]
    assert found["turned"][1] != found["zero"][1]
    assert ("<user>" in found["turned"][2][0]) is chat
    assert config["setting"] == {"k": 0.7, "l": -0.25}
    assert set(config["vectors"]) == {"k", "l"}


def test_the_harness_finds_the_class_by_itself():
    """As its command does: it imports torch, and nothing of ours."""
    code = ("import lm_eval.evaluator, torch, lm_eval.api.registry as known\n"
            "print(known.get_model('alignvec'), len(known.model_registry))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "alignvec.evaluate.harness.KnobLM" in done.stdout, done.stderr
    assert int(done.stdout.split()[-1]) > 10  # its own are there as well


@pytest.mark.real  # on a tiny model, but the command first reads the harness's 26 000 task files
def test_the_command_as_it_is_installed(task, tiny, vectors, tmp_path):
    """The harness's own, as a process: nothing of ours is imported for it."""
    told = f"base={tiny()},dtype=float32,vector=k:{vectors / 'one'},set=k=1"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lm_eval")), "--model", "alignvec", "--model_args",
         told, "--tasks", "tea", "--include_path", str(task), "--apply_chat_template",
         "--output_path", str(tmp_path / "results.json")],
        capture_output=True, text=True, timeout=600, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("results*.json")
    assert json.loads(results.read_text())["config"]["setting"] == {"k": 1}


def test_a_refusal_that_nobody_catches_is_one_line():
    code = "from alignvec.evaluate.harness import KnobLM; KnobLM('no/such', 'k')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 'k' is no vector")
    assert "Traceback" not in done.stderr


def test_nothing_happens_where_no_harness_is_running():
    code = "import torch, sys; assert not {m for m in sys.modules if m.startswith('lm_eval')}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"base": ""}, "'base' is missing"),
        ({"pretrained": "BASE"}, "unknown model argument 'pretrained'"),
        ({"base": "no/such", "vector": "k:ONE"}, "no/such"),
        ({"vector": "k"}, "'k' is no vector; write KNOB:PATH"),
        ({"vector": "k:ONE+k:ONE"}, "'k' has two vectors"),
        ({"vector": "k:ONE", "set": "k"}, "'k' is no setting"),
        ({"vector": "k:ONE", "set": "k=1", "k": 2}, "unknown model argument 'k'"),
        ({"vector": "k:ONE", "dtype": "float8"}, "unknown dtype"),
    ],
)
def test_wrong_arguments_are_refused(told, message, tiny, vectors):
    real = {"BASE": str(tiny()), "k:ONE": f"k:{vectors / 'one'}"}
    told = {"base": str(tiny())} | {name: real.get(text, text) for name, text in told.items()}
    told["vector"] = str(told.get("vector", "")).replace("ONE", str(vectors / "one"))
    with pytest.raises(AlignvecError, match=message) as refused:
        KnobLM(**told)
    assert refused.value.code.startswith("error: ")


def test_mappings_and_levels_and_pluses_within_a_number(tiny, vectors):
    paths = {"k": str(vectors / "one"), "l": str(vectors / "other")}
    base = {"base": str(tiny()), "dtype": "float32"}
    turned = KnobLM(**base, vector=paths, set={"k": 1, "l": -0.1})
    assert turned.knobs.setting == {"k": 1, "l": -0.1}
    text = "+".join(f"{knob}:{path}" for knob, path in paths.items())
    assert KnobLM(**base, vector=text, set="l=1e+0+k=+2").knobs.setting == {"k": 2, "l": 1}


def test_a_head_that_a_vector_moves_apart_stays_apart(tiny, tmp_path):
    """HFLM ties what the config says is tied."""
    import torch

    from alignvec.knobs.model import KnobModel

    base = tiny("llama", tie_word_embeddings=True)
    vector = AlignmentVector.extract(base, _untied(base, tmp_path / "untied"))
    vector.save_pretrained(tmp_path / "av")
    lm = KnobLM(str(base), f"k:{tmp_path / 'av'}", "k=1", dtype="float32")
    expected = KnobModel.from_pretrained(base, {"k": vector}, "float32").set(k=1).model
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        found, wanted = lm.model(ids).logits, expected(ids).logits
    assert torch.equal(found, wanted)
    assert not torch.equal(lm.model.get_output_embeddings().weight,
                           lm.model.get_input_embeddings().weight)  # fmt: skip


def _untied(base, folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() + 0.1)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
