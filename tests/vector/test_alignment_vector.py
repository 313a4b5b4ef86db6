import dataclasses
import json
import math
import os
import subprocess
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alignvec.base.identity import BaseId
from alignvec.base.live import open_weights
from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.delta import Dense, LowRank
from conftest import ARCHITECTURES

BASE = BaseId("a base", "f00d")
SHAPE = (5, 7)


@st.composite
def deltas(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        return Dense(torch.randn(SHAPE, generator=generator))
    rank = draw(st.integers(1, 3))
    a, b = (torch.randn(s, generator=generator) for s in ((rank, SHAPE[1]), (SHAPE[0], rank)))
    if draw(st.booleans()):  # as Conv1D stores it
        return LowRank(b.T.contiguous(), a.T.contiguous(), transposed=True)
    return LowRank(a, b)


vectors = st.dictionaries(st.sampled_from("wxyz"), deltas(), max_size=4).map(
    lambda d: AlignmentVector(d, BASE)
)
float32s = st.floats(-1e6, 1e6, width=32)
scales = st.floats(-4, 4, allow_nan=False).map(lambda x: round(x, 3))


def dense(vector):
    return {name: delta.dense() for name, delta in vector.deltas.items()}


def assert_equal(left, right):
    left, right = dense(left), dense(right)
    zero = torch.zeros(SHAPE)
    for name in left.keys() | right.keys():
        torch.testing.assert_close(
            left.get(name, zero), right.get(name, zero), atol=1e-4, rtol=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(u=vectors, v=vectors, w=vectors, s=scales, t=scales)
def test_vector_space(u, v, w, s, t):
    assert_equal(u + v, v + u)
    assert_equal((u + v) + w, u + (v + w))
    assert_equal(s * (u + v), s * u + s * v)
    assert_equal((s + t) * u, s * u + t * u)
    assert_equal(u - u, 0 * u)
    assert (u - v).norm() == pytest.approx((v - u).norm(), rel=1e-4, abs=1e-4)
    assert (s * u).norm() == pytest.approx(abs(s) * u.norm(), rel=1e-4, abs=1e-4)
    squares = sum(float(d.square().sum()) for d in dense(u).values())
    assert u.norm() ** 2 == pytest.approx(squares, rel=1e-4, abs=1e-4)
    if u.norm() and v.norm():
        assert u.cosine(v) == pytest.approx(v.cosine(u), abs=1e-4)
        assert u.cosine(u) == pytest.approx(1, abs=1e-4)
        assert abs(u.cosine(v)) <= 1 + 1e-4


@settings(max_examples=60, deadline=None)
@given(u=vectors, v=vectors, s=scales)
def test_adding_to_a_weight_is_adding_the_dense_delta(u, v, s):
    for delta in (u + s * v).deltas.values():
        weight = torch.ones(SHAPE)
        delta.add_to(weight, 0.5)
        torch.testing.assert_close(weight, 1 + 0.5 * delta.dense(), atol=1e-4, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    base=st.lists(float32s, min_size=4, max_size=4),
    aligned=st.lists(float32s, min_size=4, max_size=4),
)
def test_strength_one_gives_any_aligned_weight_exactly(base, aligned):
    theta, wanted = torch.tensor(base), torch.tensor(aligned)
    delta = Dense.between(theta, wanted)
    delta.add_to(theta, 1.0)
    assert torch.equal(theta, wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_extract_save_load_fold_is_exact_at_one_and_zero(architecture, tiny, nudged, tmp_path):
    base, aligned = tiny(architecture), nudged(architecture)
    vector = AlignmentVector.extract(base, aligned)
    deltas = vector.in_memory().deltas.values()
    assert any(delta.residual is not None for delta in deltas)  # the hard case
    vector.save_pretrained(tmp_path / "av")
    model = KnobModel.from_pretrained(base, {"k": tmp_path / "av"}, dtype="float32")
    original = {k: v.clone() for k, v in model.model.state_dict().items()}
    model.set(k=1)
    target = load_checkpoint(aligned, torch.float32).state_dict()
    assert all(torch.equal(value, target[name]) for name, value in model.model.state_dict().items())
    model.set(k=0)
    assert all(torch.equal(v, original[name]) for name, v in model.model.state_dict().items())


def test_only_tensors_that_differ_and_none_for_the_base_itself(tiny, tmp_path):
    base = tiny()
    empty = AlignmentVector.extract(base, base)
    assert not empty.deltas
    assert empty.norm() == 0
    empty.save_pretrained(tmp_path / "empty")
    assert not AlignmentVector.from_pretrained(tmp_path / "empty").deltas
    model = load_checkpoint(base, torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert list(AlignmentVector.extract(base, model).deltas) == [
        "model.layers.1.mlp.down_proj.weight"
    ]


def adapter(base, folder, **changes):
    from peft import LoraConfig, get_peft_model

    model = load_checkpoint(base, torch.float32)
    fan = type(model).__name__.startswith("GPT2")
    targets = ["c_attn", "c_proj"] if fan else ["q_proj", "down_proj", "fc2"]
    options = {"r": 4, "lora_alpha": 12, "fan_in_fan_out": fan, **changes}
    peft = get_peft_model(model, LoraConfig(target_modules=targets, **options))
    torch.manual_seed(3)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(folder)
    return peft


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_adapter_becomes_a_vector_that_peft_loads(architecture, rslora, tiny, tmp_path):
    from peft import PeftModel

    base = tiny(architecture)
    peft = adapter(base, tmp_path / "lora", use_rslora=rslora)
    vector = AlignmentVector.extract(base, tmp_path / "lora")
    assert vector.kind == "low_rank"
    vector.save_pretrained(tmp_path / "av")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = peft(ids).logits
        model = KnobModel.from_pretrained(base, {"k": tmp_path / "av"}, dtype="float32")
        torch.testing.assert_close(model.set(k=1).model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        again = PeftModel.from_pretrained(load_checkpoint(base, torch.float32), tmp_path / "av")
        torch.testing.assert_close(again(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_dora_adapter_becomes_a_full_vector(tiny, tmp_path):
    base = tiny()
    peft = adapter(base, tmp_path / "dora", use_dora=True)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1.1)
    peft.save_pretrained(tmp_path / "dora")
    vector = AlignmentVector.extract(base, tmp_path / "dora")
    assert vector.kind == "full"
    vector.save_pretrained(tmp_path / "av")
    ids = torch.tensor([[5, 6, 7, 8]])
    model = KnobModel.from_pretrained(base, {"k": tmp_path / "av"}, dtype="float32")
    with torch.no_grad():
        wanted = peft.eval()(ids).logits
        torch.testing.assert_close(model.set(k=1).model(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_sums_of_low_rank_vectors_stay_low_rank_and_survive_the_disk(tiny, tmp_path):
    base = tiny()
    adapter(base, tmp_path / "one")
    adapter(base, tmp_path / "two", r=2)
    one, two = (AlignmentVector.extract(base, tmp_path / n) for n in ("one", "two"))
    mix = 0.7 * one - 0.3 * two
    assert mix.kind == "low_rank"
    loaded = AlignmentVector.from_pretrained(mix.save_pretrained(tmp_path / "mix"))
    for name, delta in mix.deltas.items():
        torch.testing.assert_close(loaded.deltas[name].dense(), delta.dense())
    assert "0.7" in loaded.training["formula"]


def test_bfloat16_vectors_are_half_the_size(tiny, nudged, tmp_path):
    vector = AlignmentVector.extract(tiny(), nudged())
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        folder = vector.save_pretrained(tmp_path / dtype, dtype=dtype)
        sizes[dtype] = (folder / "model.safetensors").stat().st_size
        loaded = AlignmentVector.from_pretrained(folder)
        assert str(loaded.dtype) == f"torch.{dtype}"
        assert loaded.cosine(vector) == pytest.approx(1, abs=1e-3)
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


def test_fingerprint_knows_its_base_in_any_dtype_and_no_other(tiny, nudged, tmp_path):
    base = tiny()
    on_disk = open_weights(base).fingerprint
    assert open_weights(load_checkpoint(base, torch.bfloat16)).fingerprint == on_disk
    assert open_weights(nudged()).fingerprint != on_disk
    vector = AlignmentVector.extract(base, nudged())
    with pytest.raises(AlignvecError, match="belongs to another base"):
        KnobModel.from_pretrained(tiny(seed=1), {"k": vector})
    KnobModel.from_pretrained(tiny(seed=1), {"k": vector}, check_base=False).set(k=0.5)
    for dtype in ("bfloat16", "float16"):
        KnobModel.from_pretrained(base, {"k": vector}, dtype=dtype).set(k=0.5)


def test_a_tied_head_stored_twice_is_one_tensor(tiny, tmp_path):
    tied = tiny("llama", tie_word_embeddings=True)
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for file in tied.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not AlignmentVector.extract(tied, tmp_path).deltas
    assert open_weights(tmp_path).fingerprint == open_weights(tied).fingerprint


def test_vectors_of_different_bases_do_not_add():
    one = AlignmentVector({}, BASE)
    with pytest.raises(AlignvecError, match="different bases"):
        one + dataclasses.replace(one, base=BaseId("other", "beef"))
    with pytest.raises(AlignvecError, match="scaled by nan"):
        one * float("nan")


def test_other_architecture_and_other_vocabulary_are_named_by_tensor(tiny):
    with pytest.raises(AlignvecError, match=r"differ in architecture: .*bias is missing in the"):
        AlignmentVector.extract(tiny("llama"), tiny("qwen2"))
    with pytest.raises(AlignvecError, match=r"\(96, 32\) in the base and \(104, 32\) in the al"):
        AlignmentVector.extract(tiny("llama"), tiny("llama", vocab_size=104))


def damage_metadata(folder, **changes):
    file = folder / "alignment_vector.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "alignment_vector.json").unlink(), "is no alignment vector"),
        (lambda f: (f / "alignment_vector.json").write_text("{"), "not readable JSON"),
        (lambda f: (f / "alignment_vector.json").write_text("[]"), "alignment_vector.json"),
        (lambda f: damage_metadata(f, format_version=99), "of format 99"),
        (lambda f: damage_metadata(f, kind="quantum"), "field 'kind'"),
        (lambda f: damage_metadata(f, tensors={}), "is in the weights but not in"),
        (lambda f: damage_metadata(f, tensors={"x": {"shape": [1]}}), "but not in the weights"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: truncate(f / "model.safetensors"), "truncated"),
        (lambda f: truncate(f / "residual-00000.safetensors"), "truncated"),
        (lambda f: poison(f / "model.safetensors"), "norm.weight holds NaN"),
    ],
)  # fmt: skip
def test_a_damaged_vector_is_refused_in_one_line(break_it, message, tiny, nudged, tmp_path):
    AlignmentVector.extract(tiny(), nudged()).save_pretrained(tmp_path / "av")
    break_it(tmp_path / "av")
    with pytest.raises(AlignvecError, match=message) as caught:
        AlignmentVector.from_pretrained(tmp_path / "av").in_memory()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("a.weight"), "a.lora_A.weight is in the weights but not in"),
        (lambda tensors: tensors["a.weight"].update(rank=2), "a.weight has factors of rank 4, not"),
    ],
)
def test_factors_that_the_metadata_does_not_tell_of_are_refused(change, message, tmp_path):
    deltas = {f"{n}.weight": LowRank(torch.randn(4, 8), torch.randn(8, 4)) for n in "ab"}
    deltas["b.weight"] = LowRank(torch.randn(3, 8), torch.randn(8, 3))  # padded, and no harm
    AlignmentVector(deltas, BASE).save_pretrained(tmp_path / "av")
    assert AlignmentVector.from_pretrained(tmp_path / "av").deltas["b.weight"].rank == 3
    tensors = json.loads((tmp_path / "av" / "alignment_vector.json").read_text())["tensors"]
    change(tensors)
    damage_metadata(tmp_path / "av", tensors=tensors)
    with pytest.raises(AlignvecError, match=message):
        AlignmentVector.from_pretrained(tmp_path / "av")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, False),
        ({"rms_norm_eps": 0.1}, False),
        ({"hidden_act": "gelu"}, False),
        ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}, True),
        ({"model_type": "mistral"}, True),
        ({"head_dim": 8, "max_position_embeddings": 99, "use_cache": False}, None),
    ],
    ids=str,
)
def test_a_config_that_makes_other_of_the_weights(changes, refused, tiny, tmp_path, caplog):
    for file in tiny().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    if refused:
        with pytest.raises(AlignvecError, match=r"differ in architecture: .* config and"):
            AlignmentVector.extract(tiny(), tmp_path)
        return
    AlignmentVector.extract(tiny(), tmp_path)
    told = "the base computes otherwise than the aligned model"
    assert (told in caplog.text) == (refused is False)


def poison(file):
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_pickled_and_truncated_checkpoints_are_refused(tiny, tmp_path):
    base = tiny()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((base / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(AlignvecError, match="pickled weights, which alignvec never reads"):
        AlignmentVector.extract(base, pickled)
    (pickled / "pytorch_model.bin").rename(pickled / "notes.txt")
    with pytest.raises(AlignvecError, match=r"holds no .safetensors file"):
        AlignmentVector.extract(base, pickled)
    (pickled / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(AlignvecError, match="truncated"):
        AlignmentVector.extract(base, pickled)


def test_an_index_cannot_point_outside_its_folder(tiny, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    for shard, message in (("../secret.safetensors", "not a file beside it"), ("a", "is missing")):
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
        with pytest.raises(AlignvecError, match=message):
            open_weights(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's API that an upload makes; keeps what it is sent."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://127.0.0.1:{self.server.server_port}/me/av"
        answer = {"url": here, "name": "me/av", "id": "me/av"}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
            }
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{here}/commit/1", "commitOid": "1"}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "me/av", "sha": "0", "siblings": []})

    def reply(self, answer):
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


PUSH = """
import sys
from alignvec import AlignmentVector
AlignmentVector.from_pretrained(sys.argv[1]).push_to_hub("me/av")
"""


def test_push_sends_the_folder_and_a_card(tiny, nudged, tmp_path):
    saved = AlignmentVector.extract(tiny(), nudged(), "tea expert").save_pretrained(tmp_path / "av")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
    }
    try:
        subprocess.run([sys.executable, "-c", PUSH, saved], env=environment, check=True)
    finally:
        server.shutdown()
    card = Hub.files.pop("README.md").decode()
    assert card.startswith("---\n")
    assert "# tea expert" in card
    assert "alignment-vector" in card
    assert Hub.files == {file.name: file.read_bytes() for file in saved.iterdir()}
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", PUSH, saved], env=environment, capture_output=True, text=True
    )
    assert "AlignvecError: cannot push to 'me/av'" in done.stderr


def test_every_value_of_a_vector_is_in_its_fingerprint(tiny, nudged, tmp_path):
    """Whether it is in memory, still on disk, or read back; and every way to change one value."""
    vector = AlignmentVector.extract(tiny(), nudged())
    small = compress(vector, rank=2)
    for one in (vector, small, 0.5 * vector, vector + small):
        saved = one.save_pretrained(tmp_path / "av", overwrite=True)
        forms = (one, one.in_memory(), AlignmentVector.from_pretrained(saved))
        assert len({form.fingerprint() for form in forms}) == 1
    held = vector.in_memory()
    known = {held.fingerprint(), small.fingerprint(), (2 * held).fingerprint()}
    assert len(known) == 3
    for delta in held.deltas.values():
        flat = delta.values.view(-1)
        for place in {0, 1, flat.numel() // 2, flat.numel() - 1}:
            flat[place] += 1
            assert held.fingerprint() not in known
            known.add(held.fingerprint())
    factors = small.deltas["model.layers.0.self_attn.q_proj.weight"]
    for factor in (factors.a, factors.b):
        factor[-1, -1] += 1
        assert small.fingerprint() not in known
        known.add(small.fingerprint())


def test_vectors_are_equal_by_base_and_values(tiny, nudged, tmp_path):
    one = AlignmentVector.extract(tiny(), nudged())
    one.save_pretrained(tmp_path / "one")
    again = AlignmentVector.from_pretrained(tmp_path / "one")
    assert one == again == one.in_memory()
    assert {one: 1}[again] == len({one, again}) == 1
    assert one != 2 * one
    assert one != AlignmentVector.extract(tiny(seed=1), nudged())
    assert one != "one"


def test_vectors_add_up_and_divide_like_numbers(tiny, nudged):
    one = AlignmentVector.extract(tiny(), nudged())
    three, mean = sum([one, one, one]), sum([one, one]) / 2
    assert three.norm() == pytest.approx(3 * one.norm())
    assert mean.cosine(one) == pytest.approx(1)
    assert mean.norm() == pytest.approx(one.norm())
    for half in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)):
        for scaled in (one * half, half * one, one / (1 / half)):
            assert isinstance(scaled, AlignmentVector)
            assert scaled.norm() == pytest.approx(one.norm() / 2)
    assert one + 0 == 0.0 + one == one - 0 == +one == one
    assert (0 - one) == -one != one
    for by in (0, math.inf, math.nan, np.float32("nan"), 1e-320, torch.tensor(0.0)):
        with pytest.raises(AlignvecError, match="cannot be divided by"):
            one / by
    for by in (math.inf, math.nan, np.float32("inf"), torch.tensor(math.nan), 10**400):
        with pytest.raises(AlignvecError, match="cannot be scaled by"):
            one * by
    for wrong in (lambda: 1 + one, lambda: one / "2", lambda: one / one, lambda: 2 / one):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize("wrap", ["_orig_mod.{}", "module.{}", "_orig_mod.module.{}"])
def test_names_of_wrappers_in_a_checkpoint_are_understood(wrap, tiny, nudged, tmp_path):
    wanted = AlignmentVector.extract(tiny(), nudged())
    tensors = load_file(nudged() / "model.safetensors")
    save_file({wrap.format(k): v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    found = AlignmentVector.extract(tiny(), tmp_path)
    assert found.deltas.keys() == wanted.deltas.keys()
    assert found.fingerprint() == wanted.fingerprint()
    both = {"lm_head.weight": torch.ones(2), "module.lm_head.weight": torch.ones(2)}
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(AlignvecError, match="weight twice"):
        AlignmentVector.extract(tiny(), tmp_path)
