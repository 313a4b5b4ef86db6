"""Two processes train one model: the losses of one process, written once; killed, they go on."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from safetensors.torch import load_file

from alignvec.align.pairs import TokenPair, pairs_dataset
from alignvec.data.pairs import PreferencePair
from conftest import run, write_records

WAYS = {
    "lora": ("--epochs", "3", "--lr", "1e-2"),
    "full": ("--method", "full", "--epochs", "3", "--lr", "1e-3"),
}


def launched(*arguments):
    """`alignvec ARGUMENTS` in two processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
               "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0",
               "-m", "alignvec", *map(str, arguments)]  # fmt: skip
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def told(out):
    curve = json.loads((out / "training.json").read_text())["curve"]
    return torch.tensor([[entry["loss"], entry["margin"], entry["nll"]] for entry in curve])


def weights(out):
    (file,) = out.glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_have_the_losses_of_one(way, tiny, tmp_path):
    """Of 7 records the last step of each pass is not full: one of the two has less, or nothing."""
    data = write_records(tmp_path / "tea.jsonl", 7)
    asked = ("align", tiny("mistral"), "--data", data, "--answers", "0", "--dtype", "float32",
             *WAYS[way], "-o")  # fmt: skip
    process = launched(*asked, tmp_path / "two")
    run(*asked, tmp_path / "one")
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert said.count("aligned model:") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(told(one)) >= 6
    torch.testing.assert_close(told(two), told(one), atol=1e-4, rtol=1e-4)
    found, expected = weights(two), weights(one)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)
    assert sorted(path.name for path in two.iterdir()) == sorted(p.name for p in one.iterdir())
    assert not (tmp_path / ".two.work").exists()


def test_two_killed_processes_go_on(tiny, tmp_path):
    data = write_records(tmp_path / "many.jsonl", 16)
    asked = ("align", tiny("mistral"), "--data", data, "--answers", "0", "--dtype", "float32",
             "--epochs", "4", "-o")  # fmt: skip
    process = launched(*asked, tmp_path / "two")
    work = tmp_path / ".two.work"
    while process.poll() is None:
        if any((c / "trainer_state.json").exists() for c in work.glob("checkpoint-*")):
            break
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    everyone = psutil.Process(process.pid)
    for one in [*everyone.children(recursive=True), everyone]:
        one.kill()
    process.communicate()
    assert not (tmp_path / "two").exists()
    process = launched(*asked, tmp_path / "two")
    run(*asked, tmp_path / "one")
    _, complaints = process.communicate(timeout=300)
    assert complaints.count("resuming from checkpoint-") == 1
    torch.testing.assert_close(told(tmp_path / "two"), told(tmp_path / "one"), atol=1e-3, rtol=1e-3)


def test_what_fills_up_the_last_step_does_not_count(tmp_path):
    pair = PreferencePair("a", "?", "x", "y")
    rows = pairs_dataset([TokenPair(pair, [1], [n], [9]) for n in range(5)], 0, tmp_path, 4)
    assert rows["counts"] == [True] * 5 + [False] * 3
    assert rows["chosen_ids"][-1] == rows["chosen_ids"][4]


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_the_configurations_that_ship_are_accelerates(name):
    from importlib.resources import as_file, files

    with as_file(files("alignvec") / "reproduce" / "accelerate" / f"{name}.yaml") as path:
        config = ClusterConfig.from_yaml_file(str(path))  # an unknown key is an error
    assert config.distributed_type.value.lower() == name
    assert config.mixed_precision == "no"
