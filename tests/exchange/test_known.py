"""What nobody knows of a checkpoint or of adapters is refused by name, wherever it stands."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import peft
import pytest
import transformers
from hypothesis import HealthCheck, assume, given, settings
from safetensors.numpy import load_file, save_file

from dynarag_jax.errors import InputError
from dynarag_jax.exchange import adapters, encoder_configs, t5
from dynarag_jax.exchange.configs import ARCHITECTURES, config_from_hf, config_to_hf
from dynarag_jax.exchange.decoders import expected_tensors, load_decoder
from dynarag_jax.exchange.generation import generation_settings
from dynarag_jax.exchange.known import CONFIG, GENERATION
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.models.config import DecoderConfig, RopeScaling

CFG = DecoderConfig(
    vocab=16, width=8, layers=2, heads=2, kv_heads=1, head_size=4, mlp=8, tied=False, positions=32
)
HF = config_to_hf(CFG, "float32", {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.text(st.characters(categories=["Ll", "Nd"], include_characters="_"), min_size=1)
# What other families say, whatever it means there.
FOREIGN = sorted(
    {
        field
        for kind in ("deepseek_v3", "cohere2", "gpt_neox", "falcon", "stablelm", "mamba", "dbrx")
        for field in transformers.CONFIG_MAPPING[kind]().to_dict()
    }
    - CONFIG.keys()
    - set(HF)
)
SLOW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refuses(name: str, call, *arguments) -> None:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert name in str(error.value) and "\n" not in str(error.value)


KINDS = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM", "olmo2": "Olmo2ForCausalLM", "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
}  # fmt: skip


def test_every_architecture_is_here():
    assert set(KINDS.values()) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_itself_says_of_a_family_is_known(kind):
    architecture = KINDS[kind]
    theirs = transformers.CONFIG_MAPPING[kind]().to_dict() | {"architectures": [architecture]}
    cfg = config_from_hf(json.loads(json.dumps(theirs)))
    assert cfg.family == ARCHITECTURES[architecture]
    # What it leaves out has the value that transformers gives it.
    small = {
        k: theirs[k]
        for k in ("architectures", "vocab_size", "hidden_size", "num_hidden_layers",
                  "num_attention_heads", "num_key_value_heads", "intermediate_size")
    }  # fmt: skip
    full = dataclasses.asdict(cfg) | {"positions": 0}
    assert dataclasses.asdict(config_from_hf(small)) | {"positions": 0} == full


@given(name=NAMES | st.sampled_from(FOREIGN), value=JSON)
def test_an_unknown_field_of_a_config_is_refused(name, value):
    assume(name not in CONFIG and name not in HF)
    assume(name not in ("rope_theta", "head_dim", "hidden_act", "tie_word_embeddings"))
    refuses(name, config_from_hf, HF | {name: value})
    t5_hf = transformers.T5Config().to_dict() | {"architectures": ["T5ForConditionalGeneration"]}
    if name not in t5_hf and name not in t5._IDLE and name != "layer_norm_epsilon":
        refuses(name, t5.config_from_hf, t5_hf | {name: value}, True)
    bert = transformers.BertConfig().to_dict() | {"model_type": "bert"}
    if name not in bert and name not in encoder_configs.IDLE and name != "position_embedding_type":
        refuses(name, encoder_configs.config_from_hf, bert | {name: value})


@given(name=NAMES, value=JSON, where=st.sampled_from(["rope_scaling", "rope_parameters"]))
def test_an_unknown_field_of_rotary_positions_is_refused(name, value, where):
    known = {"rope_type", "type", "factor", "rope_theta", "partial_rotary_factor"}
    assume(name not in known | {"attention_factor", "original_max_position_embeddings"})
    rope = {"rope_type": "linear", "factor": 2.0, name: value}
    refuses(name, config_from_hf, {**HF, "rope_scaling": None, where: rope})


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 0}, {"rope_theta": "1e4"}, {"rope_parameters": {"rope_theta": -1.0}},
        {"rms_norm_eps": -1e-5}, {"rms_norm_eps": "1e-5"}, {"num_key_value_heads": 0},
        {"max_position_embeddings": 0}, {"head_dim": 4.0}, {"tie_word_embeddings": "false"},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_would_be_taken_for_others_are_refused(fields):
    """Zero is not "left out", and "false" is not false."""
    name = next(iter(fields))
    refuses(name if name != "rope_parameters" else "rope_theta", config_from_hf, HF | fields)
    mistral = HF | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    del mistral["attention_bias"], mistral["mlp_bias"]
    refuses("sliding_window", config_from_hf, mistral | {"sliding_window": 0})
    both = ["LlamaForCausalLM", "MistralForCausalLM"]
    refuses("MistralForCausalLM", config_from_hf, HF | {"architectures": both})


DECODERS = {
    "LlamaConfig": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "MistralConfig": {}, "Qwen2Config": {"use_sliding_window": True}, "Qwen3Config": {},
    "Gemma2Config": {}, "Gemma3TextConfig": {}, "SmolLM3Config": {}, "Olmo2Config": {},
    "GraniteConfig": {}, "Phi3Config": {},
}  # fmt: skip
OTHERS = {
    "BertConfig": encoder_configs.config_from_hf,
    "RobertaConfig": encoder_configs.config_from_hf,
    "ModernBertConfig": encoder_configs.config_from_hf,
    "T5Config": lambda hf: t5.config_from_hf(hf, True),
}
WRONG = (True, "5", "x", 0, -1, -0.5, math.nan, math.inf, [], [1], {})


def numbers(fields: dict, above: tuple[str, ...] = ()):
    """The way to each number of a JSON object."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from numbers(value, (*above, name))
        elif isinstance(value, int | float):
            yield *above, name


@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_a_number_of_another_kind_is_refused_or_changes_nothing(kind):
    """Each number of a config, within the object of rotary positions too."""
    fields = getattr(transformers, kind)(**DECODERS.get(kind, {})).to_dict()
    fields = {name: value for name, value in fields.items() if value is not None}
    made_by = kind.replace("TextConfig", "Config")
    task = "ForConditionalGeneration" if kind == "T5Config" else "ForCausalLM"
    fields["architectures"] = [made_by.replace("Config", task)]
    read = OTHERS.get(kind, config_from_hf)
    plain, said = read(fields), []
    for way in numbers(fields):
        for wrong in WRONG:
            changed = json.loads(json.dumps(fields))
            inner = changed
            for name in way[:-1]:
                inner = inner[name]
            if wrong == 0 and way[-1] in ("max_window_layers", "pad_token_id"):
                continue  # a number like others
            if wrong is True and isinstance(inner[way[-1]], bool):
                continue
            inner[way[-1]] = wrong
            try:
                found = read(changed)
            except InputError as error:
                said.append(str(error))
            else:
                assert found == plain, (way, wrong)
    assert len(said) > 50 and "\n" not in "".join(said)


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"sliding_window": 8},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"partial_rotary_factor": 0.5},
        {"attention_bias": True},
        {"is_encoder_decoder": True},
        {"layer_norm_eps": 1e-5},
        {"attn_logit_softcapping": 30.0},
        {"model_type": "mistral"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_would_change_a_llama_are_refused(fields):
    refuses(next(iter(fields)), config_from_hf, HF | fields)


PHI = config_to_hf(
    DecoderConfig(
        family="phi3", vocab=16, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=8,
        rotary_share=0.5, positions=16, tied=False,
        rope_scaling=RopeScaling(
            "longrope", 4.0, original_positions=16, short=(1.0, 2.0), long=(3.0, 4.0),
            attention_factor=1.25, positions=64,
        ),
    ),
    "float32",
    {},
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": PHI["rope_scaling"] | {"short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": PHI["rope_scaling"] | {"new": 1}}, "new = 1"),
        ({"rope_scaling": PHI["rope_scaling"] | {"type": "dynamic"}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_scaling and rope_parameters"),
        ({"partial_rotary_factor": 0.3}, "short_factor"),
        ({"lm_head_bias": True}, "lm_head_bias"),
        ({"interpolate_factor": 2}, "interpolate_factor"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_would_change_a_phi_is_refused(fields, named):
    cfg = config_from_hf(PHI)
    assert cfg.rope_scaling is not None and cfg.rope_scaling.attention_factor == 1.25
    assert config_to_hf(cfg, "float32", {}) == PHI
    refuses(named, config_from_hf, PHI | fields)
    refuses("one adapter", adapters.load_adapters, "nowhere", cfg)


@pytest.mark.parametrize(
    "kinds", [["sliding_attention"], ["chunked_attention", "full_attention"], "full_attention"]
)
def test_kinds_of_layers_are_known_and_one_a_layer(kinds):
    hf = transformers.Qwen2Config(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=8, use_sliding_window=True, sliding_window=4,
    ).to_dict() | {"architectures": ["Qwen2ForCausalLM"]}  # fmt: skip
    config_from_hf(hf)
    refuses("layer_types", config_from_hf, hf | {"layer_types": kinds})


# ---------------------------------------------------------------------------- tensors


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    return {n: random.normal(size=s).astype(np.float32) for n, s in expected_tensors(CFG).items()}


@pytest.fixture
def model(tmp_path, weights) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(HF))
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


@SLOW
@given(
    name=NAMES
    | st.from_regex(
        r"model\.layers\.[0-3]\.[a-z_]{1,9}(\.[a-z_]{1,9})?\.(weight|bias)", fullmatch=True
    ),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([np.float32, np.float16, np.int8, np.uint8, np.int64]),
)
def test_an_unknown_tensor_is_refused(model, weights, name, shape, dtype):
    assume(name not in weights)
    save_file({**weights, name: np.zeros(shape, dtype)}, model / "model.safetensors")
    refuses(name, load_decoder, model)


def test_of_many_misfit_tensors_a_few_are_named_and_all_counted(model, weights):
    save_file(weights | {f"x{i}": np.zeros(1) for i in range(100)}, model / "model.safetensors")
    refuses("unknown x0; unknown x1; unknown x10; unknown x11; unknown x12; and 95 more",
            load_decoder, model)  # fmt: skip


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "inner"]
)
def test_a_wrappers_prefix_is_recognized(model, weights, prefix):
    rename = (
        (lambda n: n.replace("model.", "model._orig_mod."))
        if prefix == "inner"
        else (lambda n: prefix + n)
    )
    save_file({rename(n): w for n, w in weights.items()}, model / "model.safetensors")
    _, params = load_decoder(model)
    assert np.array_equal(params["embedding"], weights["model.embed_tokens.weight"])
    # What only some tensors have means something else.
    save_file({**weights, rename("model.odd.weight"): np.zeros(1)}, model / "model.safetensors")
    refuses("odd", load_decoder, model)


def test_adapters_inside_a_checkpoint_are_named(model, weights):
    inside = {f"base_model.model.{n}": w for n, w in weights.items()}
    inside["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = np.zeros(1)
    save_file(inside, model / "model.safetensors")
    refuses("merge_and_unload", load_decoder, model)


def test_quantized_weights_are_refused(model, weights):
    name = "model.layers.0.mlp.up_proj"
    packed = {n: w for n, w in weights.items() if n != f"{name}.weight"}
    save_file({**packed, f"{name}.qweight": np.zeros(4, np.int32)}, model / "model.safetensors")
    refuses("dequantized", load_decoder, model)
    save_file(
        {**weights, f"{name}.weight": np.zeros((8, 8), np.uint8)}, model / "model.safetensors"
    )
    refuses("has type U8", load_decoder, model)


def test_a_tied_head_equals_the_embedding(model, weights):
    (model / "config.json").write_text(json.dumps(HF | {"tie_word_embeddings": True}))
    refuses("lm_head.weight is not equal to model.embed_tokens.weight", load_decoder, model)
    tied = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    save_file(tied, model / "model.safetensors")
    load_decoder(model)


def test_a_model_saved_without_its_head_is_read_where_it_is_tied(model, weights):
    bare = {n.removeprefix("model."): w for n, w in weights.items() if n != "lm_head.weight"}
    save_file(bare, model / "model.safetensors")
    refuses("missing lm_head.weight", load_decoder, model)
    (model / "config.json").write_text(json.dumps(HF | {"tie_word_embeddings": True}))
    load_decoder(model)


# ---------------------------------------------------------------------------- several files


def index(model: Path, weight_map, **more) -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map, **more})
    (model / "model.safetensors.index.json").write_text(text)


def test_adapters_beside_a_model_are_named(model, weights):
    """transformers would load them into it."""
    (model / "adapter_config.json").write_text("{}")
    refuses("adapters stand beside the model", Tensors, model)


def test_of_a_file_and_an_index_the_file_is_read(model, weights):
    save_file({n: w * 0 for n, w in weights.items()}, model / "old.safetensors")
    index(model, dict.fromkeys(weights, "old.safetensors"))
    assert np.array_equal(Tensors(model).read("model.norm.weight"), weights["model.norm.weight"])


def test_an_index_and_its_shards_agree(model, weights):
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    a, b = names[: len(names) // 2], names[len(names) // 2 :]
    save_file({n: weights[n] for n in a}, model / "a.safetensors")
    save_file({n: weights[n] for n in b}, model / "b.safetensors")
    right = dict.fromkeys(a, "a.safetensors") | dict.fromkeys(b, "b.safetensors")
    index(model, right)
    assert Tensors(model).names() == set(weights)
    for wrong, message in (
        (right | {"new": "a.safetensors"}, "new is in no shard"),
        ({n: f for n, f in right.items() if n != a[0]}, f"{a[0]} is not in the index"),
        (right | {a[0]: "b.safetensors"}, f"{a[0]} is in a.safetensors, not in b.safetensors"),
        (right | {a[0]: "../a.safetensors"}, "no weight_map"),
    ):
        index(model, wrong)
        refuses(message, Tensors, model)
    index(model, right, quantized=True)
    refuses("quantized", Tensors, model)
    index(model, right)
    save_file({n: weights[n] for n in [*b, a[0]]}, model / "b.safetensors")
    refuses(f"{a[0]} is in a.safetensors and in b.safetensors", Tensors, model)


# ---------------------------------------------------------------------------- adapters


@pytest.fixture
def adapted(tmp_path) -> Path:
    tensors = {}
    for i in range(CFG.layers):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = np.ones((2, CFG.width), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.ones((CFG.heads * CFG.head_size, 2), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]).to_dict()
    text = json.dumps(config, default=list)
    (tmp_path / "adapter_config.json").write_text(text)
    return tmp_path


def configure(adapted: Path, **fields) -> None:
    path = adapted / "adapter_config.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, **fields}))


def test_what_peft_itself_says_of_plain_adapters_is_known(adapted):
    assert adapters.load_adapters(adapted, CFG)[0].rank == 2


@SLOW
@given(name=NAMES, value=JSON)
def test_an_unknown_field_of_adapters_is_refused(adapted, name, value):
    before = (adapted / "adapter_config.json").read_text()
    assume(name not in before and name not in adapters._KNOWN)
    configure(adapted, **{name: value})
    refuses(name, adapters.load_adapters, adapted, CFG)
    (adapted / "adapter_config.json").write_text(before)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": start}
        for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "new")
    ]
    + [
        {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"fan_in_fan_out": True},
        {"rank_pattern": {"q_proj": 4}}, {"alpha_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [0]}, {"peft_type": "LOHA"},
        {"layer_replication": [[0, 2]]}, {"trainable_token_indices": [1]}, {"use_qalora": True},
        {"target_parameters": ["x"]}, {"alora_invocation_tokens": [1]}, {"use_bdlora": {"a": 1}},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=str,
)  # fmt: skip
def test_variants_of_adapters_are_refused(adapted, fields):
    configure(adapted, **fields)
    refuses(next(iter(fields)), adapters.load_adapters, adapted, CFG)


@SLOW
@given(
    NAMES
    | st.sampled_from(("lora_B.bias", "lora_magnitude_vector", "lora_A.other.weight")).map(
        "base_model.model.model.layers.0.self_attn.q_proj.{}".format
    )
    | st.just("base_model.model.lm_head.weight")
)
def test_an_unknown_tensor_of_adapters_is_refused(adapted, name):
    path = adapted / "adapter_model.safetensors"
    before = load_file(path)
    save_file({**before, name: np.zeros(2, np.float32)}, path)
    refuses(name, adapters.load_adapters, adapted, CFG)
    save_file(before, path)


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.replace(".weight", ".default.weight"),
        lambda n: f"module.{n}",
        lambda n: n.replace("model.model.layers", "model._orig_mod.model.layers"),
    ],
)
def test_adapters_in_wrappers_are_recognized(adapted, rename):
    path = adapted / "adapter_model.safetensors"
    save_file({rename(n): w for n, w in load_file(path).items()}, path)
    assert adapters.load_adapters(adapted, CFG)[0].names() == ["query"]


# ---------------------------------------------------------------------------- generation


def test_what_transformers_itself_says_of_generation_is_known(tmp_path):
    transformers.GenerationConfig(eos_token_id=[1, 2]).save_pretrained(tmp_path)
    assert generation_settings(tmp_path)["eos_token_id"] == [1, 2]
    known = transformers.GenerationConfig().to_dict().keys()
    (tmp_path / "generation_config.json").write_text(json.dumps(dict.fromkeys(known)))
    assert generation_settings(tmp_path).keys() == known


@SLOW
@given(name=NAMES, value=JSON)
def test_an_unknown_field_of_generation_is_refused(tmp_path, name, value):
    assume(name not in GENERATION and name not in transformers.GenerationConfig().to_dict())
    assume(name not in ("model_type", "dtype"))
    assume(not (isinstance(value, float) and math.isnan(value)))
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    refuses(name, generation_settings, tmp_path)
