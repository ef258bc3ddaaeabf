"""Weights to Hugging Face and back: equal logits there, the same bytes here, every error named."""

from __future__ import annotations

import json
import math
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.decoders import (
    config_from_hf,
    config_to_hf,
    expected_tensors,
    load_decoder,
    save_decoder,
    weights_fingerprint,
)
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, RopeScaling
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.sharding import make_mesh

TIED = DecoderConfig(
    vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_size=4, mlp=24, positions=64,
    rope_base=1000.0, norm_eps=1e-6,
)  # fmt: skip
UNTIED = DecoderConfig(
    vocab=32, width=24, layers=2, heads=2, kv_heads=1, head_size=16, mlp=40, positions=128,
    rope_base=500.0, rope_scaling=RopeScaling("llama3", 4.0, 1.0, 2.0, 16), tied=False,
)  # fmt: skip
CONFIGS = pytest.mark.parametrize("cfg", [TIED, UNTIED], ids=["tied", "untied-llama3-rope"])


def weights(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape, scale=0.3) + (p.scale is None), jnp.float32),
        decoder.parameter_table(cfg),
        is_leaf=decoder.is_parameter,
    )


@pytest.fixture(scope="module")
def tokenizer():
    words = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "a", "b"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>", chat_template="{{ messages[0]['content'] }}",
    )  # fmt: skip


def contents(tree):
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def our_logits(cfg, params, tokens):
    @jax.jit
    def run(params):
        hidden, _ = decoder.prefill(cfg, params, tokens, jnp.array([tokens.shape[1]]))
        return decoder.logits(cfg, params, hidden)

    return np.asarray(run(params))


@CONFIGS
def test_transformers_loads_the_export_with_equal_logits(tmp_path, tokenizer, cfg):
    params = weights(cfg)
    save_decoder(tmp_path / "model", cfg, params, tokenizer, card=ModelCard("# A model\n"))
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    theirs, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == "LlamaForCausalLM"
    tokens = np.random.default_rng(1).integers(0, 32, (1, 40))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(cfg, params, tokens), expected, atol=1e-4)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert back("a b")["input_ids"] == tokenizer("a b")["input_ids"]
    assert back.chat_template == tokenizer.chat_template
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id) == (2, 0)
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.generation_config.bos_token_id == 1
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"


@CONFIGS
def test_the_export_comes_back_byte_for_byte_in_one_file_or_many(tmp_path, tokenizer, cfg):
    params = weights(cfg)
    save_decoder(tmp_path / "whole", cfg, params, tokenizer)
    save_decoder(tmp_path / "shards", cfg, params, tokenizer, shard_bytes=4000)
    shards = sorted(p.name for p in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(expected_tensors(cfg))
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 4 * decoder.count_parameters(cfg)
    for name in shards:
        sizes = [x.nbytes for x in load_file(tmp_path / "shards" / name).values()]
        assert sum(sizes) <= 4000 or len(sizes) == 1
    for directory in ("whole", "shards"):
        found, back = load_decoder(tmp_path / directory)
        assert found == cfg
        assert contents(back) == contents(params)
    theirs, ours = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / d).state_dict()
        for d in ("whole", "shards")
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_bfloat16_is_stored_and_loaded_as_such(tmp_path, tokenizer):
    params = weights(TIED)
    save_decoder(tmp_path / "half", TIED, params, tokenizer, dtype="bfloat16")
    with safe_open(tmp_path / "half" / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    cfg, back = load_decoder(tmp_path / "half", "bfloat16", dtype="bfloat16", unroll=2)
    assert (cfg.param_dtype, cfg.dtype, cfg.unroll) == ("bfloat16", "bfloat16", 2)
    assert contents(back) == contents(rounded)
    _, wide = load_decoder(tmp_path / "half")
    assert contents(wide) == contents(jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert theirs.dtype == torch.bfloat16


def test_float16_is_stored_unless_a_weight_is_too_large(tmp_path, tokenizer):
    params = weights(TIED)
    save_decoder(tmp_path / "half", TIED, params, tokenizer, dtype="float16")
    _, back = load_decoder(tmp_path / "half")
    np.testing.assert_allclose(back["embedding"], params["embedding"], rtol=1e-3, atol=1e-6)
    params["embedding"] = params["embedding"].at[3, 3].set(1e5)
    with pytest.raises(InputError, match=r"embed_tokens.weight holds values beyond float16"):
        save_decoder(tmp_path / "large", TIED, params, tokenizer, dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["half"]


def test_weights_are_placed_on_a_mesh_while_loading(tmp_path, tokenizer):
    params = weights(TIED)
    save_decoder(tmp_path / "model", TIED, params, tokenizer)
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    _, back = load_decoder(tmp_path / "model", shardings=lambda cfg: param_shardings(cfg, mesh))
    assert contents(back) == contents(params)
    jax.tree.map(
        lambda x, place: x.sharding.is_equivalent_to(place, x.ndim) or pytest.fail(str(place)),
        back,
        param_shardings(TIED, mesh),
    )
    save_decoder(tmp_path / "again", TIED, back, tokenizer)
    assert weights_fingerprint(tmp_path / "again") == weights_fingerprint(tmp_path / "model")


def test_an_existing_directory_is_kept_unless_told_otherwise(tmp_path, tokenizer):
    save_decoder(tmp_path / "model", TIED, weights(TIED), tokenizer)
    first = weights_fingerprint(tmp_path / "model")
    other = weights(TIED, seed=1)
    with pytest.raises(InputError, match="exists already"):
        save_decoder(tmp_path / "model", TIED, other, tokenizer)
    assert weights_fingerprint(tmp_path / "model") == first
    save_decoder(tmp_path / "model", TIED, other, tokenizer, overwrite=True)
    assert weights_fingerprint(tmp_path / "model") != first
    with pytest.raises(InputError, match=r"'int8' is unknown; choose one of float32"):
        save_decoder(tmp_path / "new", TIED, other, tokenizer, dtype="int8")
    assert os.listdir(tmp_path) == ["model"]
    with pytest.raises(InputError, match="no safetensors files"):
        weights_fingerprint(tmp_path)


# ---------------------------------------------------------------------------- what does not load


@pytest.fixture
def model(tmp_path, tokenizer):
    """A directory to spoil."""
    save_decoder(tmp_path / "model", UNTIED, weights(UNTIED), tokenizer)
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path, tokenizer):
    """The same in several files."""
    directory = tmp_path / "shards"
    save_decoder(directory, UNTIED, weights(UNTIED), tokenizer, shard_bytes=8000)
    return directory


def edit(path, **fields):
    value = json.loads(path.read_text())
    value.update(fields)
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "gone"}))


def refused(directory, *messages):
    with pytest.raises(InputError) as error:
        load_decoder(directory)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_directory_no_config_no_weights(model, tmp_path):
    refused(tmp_path / "none", str(tmp_path / "none"), "no such model directory")
    (model / "model.safetensors").rename(tmp_path / "kept.safetensors")
    refused(model, "no model.safetensors and no index of shards")
    (model / "config.json").unlink()
    refused(model, "config.json: no such file")


def test_a_pickle_is_not_read(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    refused(model, "pytorch_model.bin: a pickle checkpoint can run any code", "safetensors")


def test_a_missing_shard_is_named(shards):
    name = sorted(p.name for p in shards.glob("*.safetensors"))[1]
    (shards / name).unlink()
    refused(shards, f"{shards}: 1 of 7 shards are missing: {name}")


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": 3}', "{"])
def test_a_broken_index_is_named(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    refused(shards, "model.safetensors.index.json")


@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.999])
def test_a_truncated_file_is_named(model, keep):
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(model, f"{path}: damaged safetensors file")


def test_missing_unknown_and_misshapen_tensors_are_all_listed(model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    query = "model.layers.0.self_attn.q_proj.weight"
    tensors[query] = tensors[query][:-2].copy()
    norm = "model.norm.weight"
    tensors[norm] = tensors[norm].astype(np.int32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(3, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(
        3, np.float32
    )  # old, ignored
    save_file(tensors, path)
    refused(
        model,
        f"{model}: the weights do not fit config.json",
        "missing lm_head.weight",
        "missing model.layers.1.mlp.up_proj.weight",
        "unknown model.layers.0.self_attn.q_proj.bias",
        f"{query} has shape [30, 24], not [32, 24]",
        f"{norm} has type I32, not a float type",
    )
    with pytest.raises(InputError) as error:
        load_decoder(model)
    assert "inv_freq" not in str(error.value)


def test_a_tied_model_may_store_its_head_too(tmp_path, tokenizer):
    save_decoder(tmp_path / "model", TIED, weights(TIED), tokenizer)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, path)
    _, params = load_decoder(tmp_path / "model")
    assert contents(params) == contents(weights(TIED))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported"),
        ({"architectures": None}, "architecture None is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "field 'low_freq_factor'"),
        ({"hidden_size": "gone"}, "field 'hidden_size' is missing"),
        ({"num_key_value_heads": 3}, "not a multiple of kv_heads = 3"),
        ({"rope_scaling": "llama3"}, "these fields make no decoder"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(x),
)
def test_configurations_that_are_no_decoder_of_ours(model, fields, message):
    edit(model / "config.json", **fields)
    refused(model, f"{model / 'config.json'}: ", message)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_no_object(model, text):
    (model / "config.json").write_text(text)
    refused(model, "config.json: ")


# ---------------------------------------------------------------------------- config.json alone


def test_what_old_files_leave_out_has_transformers_defaults():
    theirs = transformers.LlamaConfig()
    cfg = config_from_hf(
        {
            "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
        }
    )  # fmt: skip
    assert cfg.kv_heads == 4
    assert cfg.head_size == 16
    assert cfg.tied == theirs.tie_word_embeddings
    assert cfg.norm_eps == theirs.rms_norm_eps
    assert cfg.positions == theirs.max_position_embeddings
    assert cfg.rope_base == 10_000
    assert cfg.rope_scaling is None


@pytest.mark.parametrize(
    ("kind", "architecture", "fields"),
    [
        ("Gemma2Config", "Gemma2ForCausalLM", {"sliding_window": 4096}),
        ("Gemma3TextConfig", "Gemma3ForCausalLM", {"sliding_window": 512}),
        (
            "Qwen2Config", "Qwen2ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 5},
        ),
        ("Qwen2Config", "Qwen2ForCausalLM", {"use_sliding_window": False, "sliding_window": 64}),
        ("MistralConfig", "MistralForCausalLM", {"sliding_window": 4096}),
        ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    ],
)  # fmt: skip
def test_windowed_layers_that_old_files_leave_to_the_family(kind, architecture, fields):
    """Gemma 2 has a window on every other layer, Gemma 3 on five of six, the first ones."""
    theirs = getattr(transformers, kind)(num_hidden_layers=14, **fields)
    old = {
        "architectures": [architecture], "vocab_size": 100, "hidden_size": 64,
        "num_hidden_layers": 14, "num_attention_heads": 4, "intermediate_size": 96, **fields,
    }  # fmt: skip
    cfg = config_from_hf(old)
    if kind == "MistralConfig":
        assert (cfg.window, cfg.windowed) == (theirs.sliding_window, ())
        return
    expected = tuple(layer == "sliding_attention" for layer in theirs.layer_types)
    assert cfg.windowed == (expected if any(expected) else ())
    assert cfg.window == (fields["sliding_window"] if any(expected) else None)
    # What we write says it layer by layer, and means the same.
    assert config_from_hf(config_to_hf(cfg, "float32", {})) == cfg
    if kind == "Gemma3TextConfig":
        assert [i for i, w in enumerate(cfg.windowed) if not w] == [5, 11]
        # The local base of rotary positions, and the pattern where a file names another.
        assert (cfg.rope_base, cfg.window_rope_base) == (1_000_000, 10_000)
        assert config_from_hf(old | {"sliding_window_pattern": 2}).windowed == (True, False) * 7


@CONFIGS
def test_config_round_trip_in_the_layouts_of_transformers_4_and_5(cfg):
    hf = config_to_hf(cfg, "float32", {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0})
    assert config_from_hf(hf) == cfg
    # transformers 5 writes one object instead of rope_theta and rope_scaling.
    scaling = hf.pop("rope_scaling") or {"rope_type": "default"}
    hf["rope_parameters"] = {**scaling, "rope_theta": hf.pop("rope_theta")}
    assert config_from_hf(hf) == cfg


def test_bfloat16_survives_numpy(tmp_path, tokenizer):
    """Every bfloat16 there is comes back as it was, NaNs aside."""
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    every = np.where(np.isnan(every.astype(np.float32)), 0, every)
    cfg = DecoderConfig(vocab=2**12, width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=8)
    params = weights(cfg)
    params["embedding"] = jnp.asarray(every.reshape(2**12, 16))
    save_decoder(tmp_path / "model", cfg, params, tokenizer, dtype="bfloat16")
    _, back = load_decoder(tmp_path / "model", "bfloat16")
    assert contents(back["embedding"]) == contents(params["embedding"])
    assert math.prod(back["embedding"].shape) == 2**16
    shutil.rmtree(tmp_path / "model")
