"""What PEFT trains, read as deltas: PEFT's own logits, or refused by the field that says why."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignvec.base.load import load_checkpoint
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank
from alignvec.vector.export import export

IDS = torch.tensor([[5, 6, 7, 8, 40, 11, 62, 3]])
BOTH = ["q_proj", "down_proj"]


def trained(base, folder, save=None, **options):
    """An adapter, every value of it as if trained; the folder."""
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": BOTH, "r": 4, "lora_alpha": 6, **options}
    torch.manual_seed(3)
    peft = get_peft_model(load_checkpoint(base, torch.float32), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peft.save_pretrained(folder, **(save or {}))
    return folder


def by_peft(base, folder):
    from peft import PeftModel

    peft = PeftModel.from_pretrained(load_checkpoint(base, torch.float32), folder).eval()
    with torch.no_grad():
        return peft(IDS).logits


def by_vector(base, folder):
    vector = AlignmentVector.extract(base, folder)
    model = KnobModel.from_pretrained(base, {"k": vector}, dtype="float32", mode="fold")
    with torch.no_grad():
        return model.set(k=1).model(IDS).logits


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rename(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({change(key): value for key, value in load_file(file).items()}, file)


EXACT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks and alphas by pattern": {
        "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {"^model.layers.0.mlp.down_proj": 9, "q_proj": 5},
        "use_rslora": True,
    },
    "a parameter by patterns of its name": {
        "target_modules": ["k_proj"],
        "target_parameters": ["q_proj.weight"],
        "rank_pattern": {"q_proj.weight": 2},
        "alpha_pattern": {r".*q_proj\.weight": 20},
    },
    "a parameter that patterns of its layer are not of": {
        "target_modules": ["k_proj"],
        "target_parameters": ["q_proj.weight"],
        "alpha_pattern": {"q_proj": 20},
    },
    "starts that leave the base as it is: gaussian": {"init_lora_weights": "gaussian"},
    "starts that leave the base as it is: orthogonal": {"init_lora_weights": "orthogonal"},
    "starts that leave the base as it is: mica": {"init_lora_weights": "mica"},
    "starts that leave the base as it is: none": {"init_lora_weights": False},
    "all biases": {"bias": "all"},
    "biases of the layers": {"bias": "lora_only"},
    "a bias in B": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "a module beside": {"modules_to_save": ["lm_head", "norm"]},
    "all whose names end so": {"modules_to_save": ["tokens", "norm"]},
    "copies that are saved twice": {
        "modules_to_save": ["embed_tokens", "lm_head", "q_norm"],
        "save": {"save_embedding_layers": True},
    },
    "biases of what is beside": {
        "modules_to_save": ["v_proj", "lm_head"],
        "bias": "all",
        "target_modules": ["q_proj"],
    },
    "both tables beside": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "an embedding": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [4, 60, 11]},
    "tokens of a table by the end of its name": {"trainable_token_indices": {"tokens": [4, 9]}},
    "tokens of two tables": {"trainable_token_indices": {"embed_tokens": [4, 9], "lm_head": [2]}},
    "tokens and a dora": {"trainable_token_indices": [62], "use_dora": True},
    "some layers": {"layers_to_transform": [1]},
    "backward passes in few numbers": {"velora_config": {"num_groups": 4}},
}


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_what_peft_computes(options, tiny, tmp_path):
    base = tiny("qwen2")  # some of its layers have a bias
    folder = trained(base, tmp_path / "a", **options)
    wanted = by_peft(base, folder)
    assert not torch.allclose(wanted, load_checkpoint(base, torch.float32)(IDS).logits, atol=0.1)
    torch.testing.assert_close(by_vector(base, folder), wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": [4, 60]},
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["tokens", "head"], "save": {"save_embedding_layers": True}},
        {"modules_to_save": ["embed_tokens"], "save": {"save_embedding_layers": True}},
        {"trainable_token_indices": {"tokens": [4, 60]}},
        {"trainable_token_indices": {"embed_tokens": [4, 60], "lm_head": [4, 60]}},
        {"trainable_token_indices": [4, 60], "save": {"save_embedding_layers": True}},
        {"target_modules": ["q_proj", "lm_head"]},
        {"save": {"save_embedding_layers": True}},
    ],
    ids=str,
)
def test_what_peft_computes_over_a_tied_head(options, tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=True)
    folder = trained(base, tmp_path / "a", **options)
    torch.testing.assert_close(by_vector(base, folder), by_peft(base, folder), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save.*embed_tokens.weight"),
        ({"modules_to_save": ["tokens"]}, "modules_to_save.*embed_tokens.weight"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.weight by factors, .* tied"),
    ],
    ids=str,
)
def test_one_of_a_tied_pair_is_refused(options, field, tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=True)
    with pytest.raises(AlignvecError, match=field):
        AlignmentVector.extract(base, trained(base, tmp_path / "a", **options))


def test_rows_of_a_tied_head_are_refused_for_what_they_are(tiny, tmp_path):
    base = tiny("llama", tie_word_embeddings=True)
    folder = trained(base, tmp_path / "a", trainable_token_indices={"lm_head": [4]})
    with pytest.raises(AlignvecError, match=r"lm_head\.weight is tied to"):
        AlignmentVector.extract(base, folder)


def test_an_adapter_of_another_base_is_refused_by_the_tensor(tiny, tmp_path):
    deeper, other = tiny("llama", num_hidden_layers=3), tiny("gpt2")
    for base, name in ((deeper, "model.layers.2"), (other, "transformer.h.0")):
        modules = ["c_attn"] if base == other else ["q_proj"]
        folder = trained(base, tmp_path / base.name, target_modules=modules)
        with pytest.raises(AlignvecError, match=rf"{name}\..*which the base does not have"):
            AlignmentVector.extract(tiny(), folder)


REFUSED = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
    "alora": {"alora_invocation_tokens": [5, 6]},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
    "use_bdlora": {"use_bdlora": {"target_modules_bd_a": BOTH, "nblocks": 2}},
    "kasa_config": {"kasa_config": {}},
    "monteclora_config": {"monteclora_config": {}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_factors_is_refused_by_its_field(name, tiny, tmp_path):
    import peft.tuners.lora.config as lora

    options = dict(REFUSED[name])
    classes = {"use_bdlora": "BdLoraConfig", "kasa_config": "KasaConfig"}
    classes["monteclora_config"] = "MontecloraConfig"
    if name in classes:
        options[name] = getattr(lora, classes[name])(**options[name])
    folder = trained(tiny(), tmp_path / "a", **options)
    field = next(iter(options))
    with pytest.raises(AlignvecError, match=f"adapter_config.json: field '{field}'"):
        AlignmentVector.extract(tiny(), folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 8}, "field 'r': rank 8 for .*, whose factors are of rank 4"),
        ({"rank_pattern": {"q_proj": 2}}, "field 'rank_pattern': rank 2"),
        ({"use_dora": True}, "field 'use_dora': True, but .* has none"),
        ({"init_lora_weights": "corda"}, "'corda' changes the base"),
        ({"init_lora_weights": "loftq"}, "'loftq' changes the base"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga' changes the base"),
        ({"init_lora_weights": "of a later peft"}, "init_lora_weights"),
        ({"use_qalora": True}, "use_qalora"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"of_a_later_peft": {"a": 1}}, "field 'of_a_later_peft': it is not known"),
        ({"peft_type": "LOHA"}, "field 'peft_type': LOHA is no LoRA"),
        ({"trainable_token_indices": [4]}, "rows of the embedding that were trained are missing"),
        ({"modules_to_save": ["lm_head"]}, "the trained copy of lm_head.weight is missing"),
        ({"of_a_later_peft": None, "another": False}, None),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, None),
        ({"init_lora_weights": None, "peft_version": "9.0"}, None),
    ],
    ids=str,
)
def test_a_field_is_read_or_refused(changes, said, tiny, tmp_path):
    folder = trained(tiny(), tmp_path / "a")
    edit(folder, **changes)
    if said is None:
        AlignmentVector.extract(tiny(), folder)
        return
    with pytest.raises(AlignvecError, match=said):
        AlignmentVector.extract(tiny(), folder)


FIRST = "model.layers.0.self_attn.q_proj"
PLACES = {  # what a config is changed to say, and the field that then passes over some factors
    "not these": ({"exclude_modules": ["down_proj"]}, "exclude_modules"),
    "not this": ({"exclude_modules": [FIRST]}, "exclude_modules"),
    "not by pattern": ({"exclude_modules": r".*layers\.0\..*"}, "exclude_modules"),
    "one of two": ({"target_modules": ["q_proj"]}, "target_modules"),
    "others": ({"target_modules": ["k_proj"]}, "target_modules"),
    "by pattern": ({"target_modules": r".*\.1\..*(q_proj|down_proj)"}, "target_modules"),
    "parameters": (
        {"target_modules": ["q_proj"], "target_parameters": ["other"]}, "target_modules"
    ),
    "some layers": ({"layers_to_transform": [1]}, "layers_to_transform"),
    "one layer": ({"layers_to_transform": 1}, "layers_to_transform"),
    "layers by name": (
        {"layers_to_transform": [1], "layers_pattern": "layers"}, "layers_to_transform"
    ),
    "no such layers": (
        {"layers_to_transform": [0, 1], "layers_pattern": ["h"]}, "layers_to_transform"
    ),
    "all by pattern": ({"target_modules": r".*(q_proj|down_proj)"}, None),
    "all layers": ({"layers_to_transform": [0, 1], "layers_pattern": ["h", "layers"]}, None),
    "by full name": (
        {"target_modules": [f"model.layers.{n}.{m}" for n in (0, 1)
                            for m in ("self_attn.q_proj", "mlp.down_proj")],
         "layers_to_transform": [0]}, None
    ),
    "all linear": ({"target_modules": "all-linear"}, None),
    "by the kind of model": ({"target_modules": None}, None),
    "no others": ({"exclude_modules": ["k_proj", "proj"]}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_factors_that_peft_passes_over_are_refused_by_the_field(case, tiny, tmp_path):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    changes, field = PLACES[case]
    folder = trained(tiny(), tmp_path / "a")
    edit(folder, **changes)
    config = LoraConfig.from_pretrained(folder)
    modules = {key.split("base_model.model.")[1].split(".lora_")[0]
               for key in load_file(folder / "adapter_model.safetensors")}  # fmt: skip
    if config.target_modules not in (None, "all-linear"):  # these PEFT makes lists of first
        taken = all(check_target_module_exists(config, module) for module in modules)
        assert taken is (field is None)
    if field is None:
        AlignmentVector.extract(tiny(), folder)
        return
    with pytest.raises(AlignvecError, match=f"field '{field}': by it PEFT passes over model."):
        AlignmentVector.extract(tiny(), folder)


def test_factors_that_no_forward_pass_asks_are_refused(tiny, tmp_path):
    """Mamba multiplies with the weight of its dt_proj itself."""
    base = tiny("mamba")
    folder = trained(base, tmp_path / "a", target_modules=["in_proj", "dt_proj"])
    with pytest.raises(AlignvecError, match=r"mixer.dt_proj, whose weight the model reads without"):
        AlignmentVector.extract(base, folder)
    file = folder / "adapter_model.safetensors"
    unmoved = {k: v * (".dt_proj.lora_B" not in k) for k, v in load_file(file).items()}
    save_file(unmoved, file)  # as training leaves them, which they do not concern
    torch.testing.assert_close(by_vector(base, folder), by_peft(base, folder), atol=1e-3, rtol=1e-3)
    name = "backbone.layers.0.mixer.dt_proj.weight"
    delta = LowRank(torch.randn(2, 2), torch.randn(64, 2))
    vector = dataclasses.replace(AlignmentVector.extract(base, folder), deltas={name: delta})
    with pytest.raises(AlignvecError, match=f"{name} is read by the model without calling"):
        export(vector, "peft", tmp_path / "out", str(base))


@pytest.mark.parametrize(
    ("architecture", "module"), [("gpt2", "c_attn"), ("llama", "embed_tokens")]
)
def test_a_dora_on_a_layer_stored_the_other_way_is_refused(architecture, module, tiny, tmp_path):
    folder = trained(tiny(architecture), tmp_path / "a", target_modules=[module], use_dora=True)
    with pytest.raises(AlignvecError, match="DoRA adapter on a layer that stores its weight"):
        AlignmentVector.extract(tiny(architecture), folder)


def test_every_field_of_peft_has_been_decided_on(tiny, tmp_path):
    """A field that the installed PEFT writes is never an unknown one."""
    from peft import LoraConfig

    from alignvec.vector import adapter_config

    decided = {
        *adapter_config._Fields.model_fields,
        *adapter_config._WITHOUT_WEIGHT,
        *adapter_config._MORE_THAN_FACTORS,
    }
    assert {one.name for one in dataclasses.fields(LoraConfig)} <= decided


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace(".weight", ".mine.weight"),
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model.module."),
        lambda key: key.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda key: key.replace("layers.", "layers._fsdp_wrapped_module."),
    ],
)
def test_names_of_wrappers_are_understood(wrap, tiny, tmp_path):
    folder = trained(tiny(), tmp_path / "a")
    wanted = by_peft(tiny(), folder)
    rename(folder, wrap)
    torch.testing.assert_close(by_vector(tiny(), folder), wanted, atol=2e-4, rtol=1e-3)


def test_a_state_dict_saved_by_hand(tiny, tmp_path):
    """With the adapter's name everywhere, the base's weights and what copies stand for."""
    from peft import PeftModel

    options = {"modules_to_save": ["lm_head"], "trainable_token_indices": [4, 9], "bias": "all"}
    folder = trained(tiny(), tmp_path / "a", **options)
    wanted = by_peft(tiny(), folder)
    peft = PeftModel.from_pretrained(load_checkpoint(tiny(), torch.float32), folder)
    state = {name: value.clone() for name, value in peft.state_dict().items()}
    save_file(state, folder / "adapter_model.safetensors")
    torch.testing.assert_close(by_vector(tiny(), folder), wanted, atol=2e-4, rtol=1e-3)


def test_several_adapters_in_one_file_are_refused(tiny, tmp_path):
    folder = trained(tiny(), tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    two = {
        key.replace(".weight", f".{name}.weight"): value.clone()
        for key, value in load_file(file).items()
        for name in ("one", "two")
    }
    save_file(two, file)
    with pytest.raises(AlignvecError, match=r"several adapters \(one, two\)"):
        AlignmentVector.extract(tiny(), folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_a_pickled_adapter_is_said_to_be_pickled(suffix, tiny, tmp_path):
    folder = trained(tiny(), tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / f"adapter_model{suffix}")
    (folder / "training_args.bin").write_bytes(b"")
    with pytest.raises(AlignvecError, match=f"adapter_model{suffix} holds pickled .* with PEFT"):
        AlignmentVector.extract(tiny(), folder)
    (folder / f"adapter_model{suffix}").unlink()
    with pytest.raises(AlignvecError, match="is missing or no file"):
        AlignmentVector.extract(tiny(), folder)


def test_other_kinds_of_peft_are_refused_by_name(tiny, tmp_path):
    from peft import IA3Config, get_peft_model

    model = load_checkpoint(tiny(), torch.float32)
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(AlignvecError, match="'peft_type': IA3 is no LoRA adapter"):
        AlignmentVector.extract(tiny(), tmp_path / "a")
