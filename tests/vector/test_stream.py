"""Vectors from disk to disk: folded checkpoints, bounded memory, killed runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alignvec.base.checkpoint import CheckpointWeights
from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.fold import fold
from alignvec.vector.stream import Output, write_tensors
from conftest import ARCHITECTURES, MOE, watching


def state(folder, dtype=torch.float32):
    return load_checkpoint(folder, dtype).state_dict()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MOE])
def test_a_folded_checkpoint_is_the_model_with_its_knobs_turned(
    architecture, tied, tiny, nudged, tmp_path
):
    base = tiny(architecture, tie_word_embeddings=tied)
    vector = AlignmentVector.extract(base, nudged(architecture, tie_word_embeddings=tied))
    small = compress(vector, rank=3)
    assert small.kind == "low_rank"
    for name, one in (("full", vector), ("low_rank", small)):
        one.save_pretrained(tmp_path / name)
    vectors = {
        name: AlignmentVector.from_pretrained(tmp_path / name) for name in ("full", "low_rank")
    }
    setting = {"full": 0.7, "low_rank": -0.3}
    fold(base, [(vectors[name], by) for name, by in setting.items()], tmp_path / "out")
    live = KnobModel.from_pretrained(base, vectors, dtype="float32").set(setting).model
    found = state(tmp_path / "out")
    for name, weight in live.state_dict().items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
    load_tokenizer(tmp_path / "out")
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is (
        not tied and architecture != "gpt2"
    )
    fold(base, [(vectors["full"], 1.0)], tmp_path / "one")  # exactly the aligned model
    aligned = state(nudged(architecture, tie_word_embeddings=tied))
    assert all(
        torch.equal(weight, aligned[name]) for name, weight in state(tmp_path / "one").items()
    )


def test_fold_writes_the_dtype_that_is_asked_for(tiny, nudged, tmp_path):
    vector = AlignmentVector.extract(tiny(), nudged())
    fold(tiny(), [(vector, 0.5)], tmp_path / "half", dtype="bfloat16")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert all(
        t.dtype == torch.bfloat16
        for t in load_file(tmp_path / "half" / "model.safetensors").values()
    )
    live = KnobModel.from_pretrained(tiny(), {"k": vector}, dtype="float32").set(k=0.5).model
    found = state(tmp_path / "half", torch.bfloat16)
    assert all(torch.equal(found[n], w.bfloat16()) for n, w in live.state_dict().items())


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(0, 12), min_size=0, max_size=3).map(tuple), min_size=1, max_size=6
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64]),
    shard=st.sampled_from(["5GB", "1KB"]),
)
def test_what_is_written_is_what_safetensors_reads(shapes, dtype, shard, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    tensors = {f"t{i}": (10 * torch.randn(shape)).to(dtype) for i, shape in enumerate(shapes)}
    outputs = {
        name: Output(tuple(t.shape), dtype, lambda a, b, t=t: (t if t.ndim else t.reshape(1))[a:b])
        for name, t in tensors.items()
    }
    seen = []
    with watching(lambda *at: seen.append(at)):
        write_tensors(folder, outputs, max_shard_size=shard)
    total = sum(t.nbytes for t in tensors.values())
    assert seen[-1] == (total, total)
    found = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    ours = CheckpointWeights(folder)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(ours[name], tensor)
        assert ours.shape(name) == tuple(tensor.shape)
    assert found.keys() == tensors.keys() == set(ours)


def test_shards_in_shards_out(tiny, nudged, tmp_path):
    for name, folder in (("base", tiny()), ("aligned", nudged())):
        model = load_checkpoint(folder, torch.float32)
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
        assert (tmp_path / name / "model.safetensors.index.json").exists()
    vector = AlignmentVector.extract(tmp_path / "base", tmp_path / "aligned")
    fold(tmp_path / "base", [(vector, 1.0)], tmp_path / "out")
    aligned = state(nudged())
    assert all(
        torch.equal(weight, aligned[name]) for name, weight in state(tmp_path / "out").items()
    )
    shard = next((tmp_path / "aligned").glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(AlignvecError, match="is missing, though the index names it"):
        AlignmentVector.extract(tmp_path / "base", tmp_path / "aligned")


def test_a_tensor_on_one_side_only_is_refused_or_left_out(tiny, nudged, tmp_path, caplog):
    with pytest.raises(AlignvecError, match=r"k_proj.bias is missing in the base.*--allow-missing"):
        AlignmentVector.extract(tiny(), nudged("qwen2"))
    vector = AlignmentVector.extract(tiny(), nudged("qwen2"), allow_missing=["*_proj.bias"])
    assert not any(name.endswith("bias") for name in vector.deltas)
    for file in nudged().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["value_head.weight"] = torch.ones(2)  # transformers does not load it
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "value_head.weight" not in AlignmentVector.extract(tiny(), tmp_path).deltas
    assert "left out: value_head.weight" in caplog.text


LARGE = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from alignvec import AlignmentVector
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vector = AlignmentVector.extract(folder / "base", folder / "aligned")
vector.save_pretrained(folder / "av", overwrite=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture
def large(tmp_path):
    """Two random checkpoints of 24 tensors, 400 MB each."""
    torch.manual_seed(0)
    for name in ("base", "aligned"):
        (tmp_path / name).mkdir()
        tensors = {f"layers.{i}.weight": torch.randn(4096, 1024) for i in range(24)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path


def test_memory_does_not_grow_with_the_model(large):
    """16 MB a tensor; the two models and the vector are 1.2 GB together."""
    done = subprocess.run([sys.executable, "-c", LARGE, large], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400_000  # in kilobytes, torch's own start included
    theirs, ours = (CheckpointWeights(large / name) for name in ("aligned", "base"))
    vector = AlignmentVector.from_pretrained(large / "av")
    name = "layers.23.weight"
    ours = ours[name]
    vector.deltas[name].in_memory().add_to(ours, 1.0)
    assert torch.equal(ours, theirs[name])


def test_a_killed_run_goes_on_where_it_was(large):
    """Killed after some tensors are noted in the journal; they are not written a second time."""
    process = subprocess.Popen([sys.executable, "-c", LARGE, large], stdout=subprocess.DEVNULL)
    noted = []
    while len(noted) < 4 and process.poll() is None:
        for journal in large.glob(".av.*.partial/written.journal"):
            noted = journal.read_text().splitlines()[1:]  # below a line on the layout
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (large / "av").exists()
    (partial,) = large.glob(".av.*.partial")
    noted = (partial / "written.journal").read_text().splitlines()[1:]
    assert 4 <= len(noted) < 24
    # A mark where the journal says it is done: a second computation would write over it.
    place = CheckpointWeights(partial)._entries[noted[0]]
    with place.file.open("r+b") as handle:
        handle.seek(place.offset)
        handle.write(torch.tensor(7.0).numpy().tobytes())
    done = subprocess.run([sys.executable, "-c", LARGE, large], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vector = AlignmentVector.from_pretrained(large / "av").in_memory()
    assert len(vector.deltas) == 24
    assert vector.deltas[noted[0]].dense()[0, 0] == 7
    assert not list(large.glob(".av.*"))


@pytest.mark.parametrize("changed", ["base", "aligned", "vector", "strength"])
def test_a_run_over_other_content_starts_anew(changed, tiny, nudged, tmp_path):
    """Two values of one row that no sample meets, in a file of the same name, size and time."""
    places = {name: tmp_path / name for name in ("base", "aligned", "vector")}
    shutil.copytree(tiny(), places["base"])
    shutil.copytree(nudged(), places["aligned"])
    AlignmentVector.extract(tiny(), nudged()).save_pretrained(places["vector"])
    by = 0.5

    def make(out, bars=nullcontext()):  # noqa: B008
        if changed == "aligned":
            vector = AlignmentVector.extract(places["base"], places["aligned"])
        else:
            vector = AlignmentVector.from_pretrained(places["vector"])
        with bars:
            if changed == "aligned":
                vector.save_pretrained(out)
            else:
                fold(places["base"], [(vector, by)], out, check_base=False)

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", watching(interrupt))
    assert list(tmp_path.glob(".out.*.partial"))
    if changed == "strength":
        by = 0.7
    else:
        file = places[changed] / "model.safetensors"
        tensors, times = load_file(file), file.stat()
        for tensor in tensors.values():
            if tensor.numel() > 1000:
                tensor.view(-1)[1:3] += 1
        save_file(tensors, file, {"format": "pt"})
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying tool would
    make(tmp_path / "out")
    make(tmp_path / "at-once")
    for file in (tmp_path / "at-once").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_was_written_in_another_dtype_is_not_gone_on_with(tiny, nudged, tmp_path):
    """A base and its bfloat16 copy have one fingerprint, but not one layout."""
    half = tmp_path / "half"
    load_checkpoint(tiny(), torch.bfloat16).save_pretrained(half)
    vector = AlignmentVector.extract(tiny(), nudged())

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching(interrupt):
        fold(tiny(), [(vector, 0.5)], tmp_path / "out")
    fold(half, [(vector, 0.5)], tmp_path / "out")
    fold(half, [(vector, 0.5)], tmp_path / "at-once")
    out, at_once = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "at-once"))
    assert out == at_once


def test_how_a_base_was_trained_is_no_record_of_what_is_folded_from_it(tiny, nudged, tmp_path):
    """A base may be what `align` wrote, with a record of a training on another base."""
    base = shutil.copytree(tiny(), tmp_path / "base")
    record = {"base": "other", "base_fingerprint": "f" * 32, "seen": ""}
    (base / "training.json").write_text(json.dumps(record))
    fold(base, [(AlignmentVector.extract(tiny(), nudged()), 0.5)], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert AlignmentVector.extract(base, tmp_path / "out").training == {}


def test_every_chat_template_comes_along(tiny, tmp_path):
    base = shutil.copytree(tiny(), tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"default": "{{ messages }}", "rag": "{{ documents }}"}
    tokenizer.save_pretrained(base)
    for overwrite in (False, True):
        fold(base, [], tmp_path / "out", overwrite=overwrite)
    copied = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert copied.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert set(copied.chat_template) == {"default", "rag"}
