"""Hugging Face to here to Hugging Face: the same bytes, the same logits, or one clear line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.convert import Convert, convert
from dynarag_jax.exchange.decoders import config_from_hf, load_decoder, save_decoder
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.sharding import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.15, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 500.0}}),
    "mistral": ("MistralConfig", {"sliding_window": 7, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {
        "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "layer_types": LAYERS,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    where = tmp_path_factory.mktemp("tokenizer") / "bpe"
    tokenizer = train_bpe(["[1], [2] None some words to learn from"] * 4, where, 280)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(where)
    return where


def torch_model(family: str, dtype="float32"):
    kind, fields = FAMILIES[family]
    config = getattr(transformers, kind)(**{**SHAPE, **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.3 * torch.randn(p.shape)
    return model.to(getattr(torch, dtype)).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer_directory):
    """A function from a family and a type to its directory, tokenizer included."""
    root = tmp_path_factory.mktemp("source")

    def make(family: str = "llama", dtype: str = "float32") -> Path:
        where = root / f"{family}-{dtype}"
        if not where.exists():
            shutil.copytree(tokenizer_directory, where)
            torch_model(family, dtype).save_pretrained(where)
        return where

    return make


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    """By the safetensors package, not by our reader."""
    out = {}
    for file in directory.glob("*.safetensors"):
        out |= safetensors_numpy.load_file(file)
    return out


def logits_of(directory: Path, dtype="float32", tokens=None) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=getattr(torch, dtype)
    ).eval()
    if tokens is None:
        tokens = np.random.default_rng(0).integers(0, 320, (2, 24))
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_byte_identical(family, dtype, source, tmp_path):
    directory = source(family, dtype)
    differences = convert(Convert(str(directory), str(tmp_path / "out"), check=dtype == "float32"))
    before, after = tensors_of(directory), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.tobytes() == after[name].tobytes(), name
    np.testing.assert_array_equal(logits_of(tmp_path / "out"), logits_of(directory))
    if differences is not None:
        assert differences.logits == 0
        assert set(differences.tensors) == set(before)
        assert not any(differences.tensors.values())


def test_check_compares_with_transformers_where_it_is_installed(source, tmp_path, monkeypatch):
    said: list[str] = []
    convert(Convert(str(source("gemma2")), str(tmp_path / "a"), check=True), said.append)
    compared = [re.search(r"within (\S+) of transformers \d.*, torch \d", line) for line in said]
    values = [float(m[1]) for m in compared if m]
    assert len(values) == 2 and max(values) < 1e-4
    # A checkpoint that we would misread is found out.
    import dynarag_jax.exchange.peers as peers

    honest = peers.transformers_logits
    monkeypatch.setattr(
        peers, "transformers_logits", lambda *a: (honest(*a)[0] + 1.0, "transformers 0, torch 0")
    )
    said.clear()
    convert(Convert(str(source("gemma2")), str(tmp_path / "b"), check=True), said.append)
    assert sum("within 1.0e+00 of" in line for line in said) == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said.clear()
    convert(Convert(str(source("gemma2")), str(tmp_path / "c"), check=True), said.append)
    assert sum("not compared with transformers (torch is not installed)" in x for x in said) == 2


def test_export_cast_sharded_with_everything_beside(source, tmp_path):
    directory = source("qwen3")
    (directory / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    out = tmp_path / "out"
    differences = convert(
        Convert(str(directory), str(out), dtype="bfloat16", shard_bytes=20_000, check=True)
    )
    assert differences is not None
    assert len(list(out.glob("model-0*-of-0*.safetensors"))) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    before, after = tensors_of(directory), tensors_of(out)
    assert set(index["weight_map"]) == set(before)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in after.values())
    for name, tensor in before.items():
        rounded = tensor.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(after[name], rounded)
        assert differences.tensors[name] == np.abs(tensor - rounded.astype(np.float32)).max()
    # The reported difference of the logits is the one that transformers finds.
    tokens = np.random.default_rng(0).integers(0, 320, (1, 64))
    theirs = np.abs(logits_of(directory, tokens=tokens) - logits_of(out, tokens=tokens)).max()
    assert theirs > 1e-3
    np.testing.assert_allclose(differences.logits, theirs, atol=1e-4)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6
    assert generation["eos_token_id"] == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "some words"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "some words"
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert json.loads((out / "manifest.json").read_text())["family"] == "qwen3"
    logits_of(out, "bfloat16")


def test_adapters_are_merged(source, tmp_path):
    from dynarag_jax.exchange.adapters import save_adapters
    from dynarag_jax.models.lora import LoraConfig, init_adapters

    peft = pytest.importorskip("peft")
    cfg, _ = load_decoder(source())
    lora = LoraConfig(rank=2, targets=("value", "down"))
    adapters = jax.tree.map(
        lambda x: 0.1 + 0 * x, init_adapters(cfg, lora, jax.random.key(0))
    )  # fmt: skip
    save_adapters(tmp_path / "adapters", cfg, lora, adapters)
    differences = convert(
        Convert(
            str(source()), str(tmp_path / "out"), adapters=str(tmp_path / "adapters"), check=True
        )
    )
    assert differences is not None
    changed = {name for name, d in differences.tensors.items() if d}
    assert len(changed) == 4
    assert all("v_proj" in name or "down_proj" in name for name in changed)
    assert differences.logits < 1e-4
    theirs = peft.PeftModel.from_pretrained(torch_model("llama"), tmp_path / "adapters").eval()
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 320, (2, 24)))
    with torch.no_grad():
        expected = theirs(tokens).logits.numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "out"), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_mesh_of_eight(family, source, tmp_path):
    """Parameters sharded over fsdp x tensor come in and go out byte for byte."""
    mesh = make_mesh(1, 4, 2, devices=jax.devices()[:8])
    cfg, params = load_decoder(source(family), shardings=lambda cfg: param_shardings(cfg, mesh))
    _, single = load_decoder(source(family))
    jax.tree.map(np.testing.assert_array_equal, params, single)
    save_decoder(tmp_path / "out", cfg, params, load_tokenizer(source(family)))
    before, after = tensors_of(source(family)), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].tobytes() == tensor.tobytes(), name


def test_the_ends_of_the_source_are_kept_and_the_tokenizers_is_among_them(source, tmp_path):
    """As in chat models: more than one token ends a text, and the tokenizer names one of them."""
    cfg, params = load_decoder(source())
    tokenizer = load_tokenizer(source())
    for ends, kept in (([7, 9], [7, 9, 1]), ([1, 9], [1, 9]), (9, [9, 1]), (1, 1), (None, 1)):
        said = {"eos_token_id": ends, "temperature": 0.6, "do_sample": True}
        said = {k: v for k, v in said.items() if v is not None}
        before = tmp_path / "before"
        before.mkdir(exist_ok=True)
        shutil.copy(source() / "config.json", before)
        (before / "generation_config.json").write_text(json.dumps(said))
        save_decoder(tmp_path / "out", cfg, params, tokenizer, source=before, overwrite=True)
        generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert generation["eos_token_id"] == kept
        assert generation["temperature"] == 0.6
        loaded = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
        assert loaded.eos_token_id == kept


@pytest.mark.parametrize("kind", ["float16", "float64", "float8_e4m3fn"])
def test_any_float_type(kind, source, tmp_path):
    directory = tmp_path / kind
    shutil.copytree(source(), directory)
    dtype = np.dtype(getattr(ml_dtypes, kind) if "8" in kind else kind)
    stored = {n: x.astype(dtype) for n, x in tensors_of(directory).items()}
    file = directory / "model.safetensors"
    if "8" in kind:
        from safetensors.torch import save_file

        torch_type = torch.float8_e4m3fn
        save_file(
            {n: torch.tensor(x.astype(np.float32)).to(torch_type) for n, x in stored.items()}, file
        )
    else:
        safetensors_numpy.save_file(stored, file)
    _, params = load_decoder(directory)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(
        np.asarray(params["layers"]["down"][1]).T, stored[name].astype(np.float32)
    )


def test_hub_id_from_the_cache(source, tmp_path, monkeypatch):
    """A hub id is found in the cache's layout without a network."""
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(source(), snapshot)
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_directory("someone/tiny") == snapshot
    cfg, _ = load_decoder("someone/tiny")
    assert cfg.family == "llama"
    with pytest.raises(InputError, match="someone/other: no such model directory, and the hub"):
        load_decoder("someone/other")
    with pytest.raises(InputError, match=r"no such model directory$"):
        load_decoder(tmp_path / "nowhere")


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "'MambaForCausalLM' is not supported; supported: L",
        ),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported, only 'silu'"),
        ({"hidden_size": None}, "hidden_size = None must be a positive"),
        ({"num_attention_heads": 3}, "not a multiple"),
    ],
)
def test_config_errors(change, message, source):
    hf = json.loads((source() / "config.json").read_text()) | change
    with pytest.raises(InputError, match=message):
        config_from_hf(hf)


def test_exports_say_what_the_family_cannot(source, tmp_path):
    cfg, params = load_decoder(source())
    import dataclasses

    wrong = dataclasses.replace(cfg, window=8)
    with pytest.raises(InputError, match="family 'llama' cannot be exported with window = 8"):
        save_decoder(tmp_path / "out", wrong, params, load_tokenizer(source()))


def program(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train.convert", *arguments],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )  # fmt: skip


def spoil(directory: Path, kind: str) -> str:
    """Break a copy of a model; return what the one line must say."""
    file = directory / "model.safetensors"
    tensors = tensors_of(directory)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return "damaged safetensors file"
    if kind == "header":
        file.write_bytes(b"\x10\x00\x00")
        return "header is cut short"
    if kind == "wrong dtype":
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
        safetensors_numpy.save_file(tensors, file)
        return "model.norm.weight has type I32, not a float type"
    if kind == "missing shard":
        index = {
            "weight_map": {
                n: f"model-0000{i % 2 + 1}-of-2.safetensors" for i, n in enumerate(tensors)
            }
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        file.rename(directory / "model-00001-of-2.safetensors")
        return "1 of 2 shards are missing: model-00002-of-2.safetensors"
    if kind == "vocabulary":
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        return "model.embed_tokens.weight has shape [320, 32], not [300, 32]"
    if kind == "tokenizer too large":
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].copy()
        safetensors_numpy.save_file(tensors, file)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
        return "tokens, the model only 100; they do not belong together"
    if kind == "missing and extra":
        tensors["model.layers.0.extra.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
        safetensors_numpy.save_file(tensors, file)
        return "missing model.layers.1.mlp.up_proj.weight; unknown model.layers.0.extra.weight"
    if kind == "pickle":
        file.rename(directory / "pytorch_model.bin")
        return "a pickle checkpoint can run any code"
    if kind == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (directory / name).unlink(missing_ok=True)
        return "holds no tokenizer"
    if kind == "architecture":
        config = json.loads((directory / "config.json").read_text())
        config["architectures"] = ["GPT2LMHeadModel"]
        (directory / "config.json").write_text(json.dumps(config))
        return "'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, Mistral"
    raise ValueError(kind)


KINDS = [
    "truncated", "header", "wrong dtype", "missing shard", "vocabulary", "tokenizer too large",
    "missing and extra", "pickle", "no tokenizer", "architecture",
]  # fmt: skip


CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.stages.export import Export

run = Run(directory={directory!r})
stages = {{"export": Export(model={model!r})}}
"""


def arguments(name: str, source: Path, place: Path) -> list[str]:
    """Of ``convert`` or ``export``, to write into ``place`` (``out`` or the run directory)."""
    if name == "convert":
        return [str(source), str(place / "out")]
    config = source.parent / f"{source.name}.config.py"
    config.write_text(CONFIG.format(directory=str(place / "run"), model=str(source)))
    return [str(config)]


@pytest.mark.parametrize("name", ["convert", "export"])
@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_models_give_one_line(kind, name, source, tmp_path, capsys):
    """Exit code 2, one line on stderr, and nothing of the target."""
    from dynarag_jax.launch.program import main

    directory, place = tmp_path / "model", tmp_path / "place"
    shutil.copytree(source(), directory)
    place.mkdir()
    message = spoil(directory, kind)
    given = arguments(name, directory, place)
    programs = {
        "convert": lambda given: main("convert", given),
        "export": lambda given: main("export", given),
    }
    capsys.readouterr()  # transformers' progress while it wrote the model
    with pytest.raises(SystemExit) as stop:
        programs[name](given)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    left = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    records = {"run/.export.lock", "run/.hashes.json", "run/export/run.json"}
    assert left <= (records if name == "export" else set())


@pytest.mark.slow  # processes of its own
def test_the_program(source, tmp_path):
    """Exit code 0 with a line a tensor; 2 with one line on stderr, and nothing written."""
    done = program(str(source()), str(tmp_path / "out"), "--check", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert any("logits within" in line and "of transformers" in line for line in said)
    # What was checked, then a line a tensor and one for the logits.
    began = next(i for i, line in enumerate(said) if line.startswith("checked: "))
    pairs = [line.rsplit(maxsplit=1) for line in said[began + 1 :]]
    assert len(pairs) == 2 * 9 + 4
    lines = {name.strip(): float(value) for name, value in pairs}
    assert all(value > 0 for value in lines.values())
    assert lines.pop("logits") < 0.5
    assert max(lines.values()) < 2**-8 * 2  # half a unit of bfloat16 below 2
    again = program(str(source()), str(tmp_path / "out"))
    assert again.returncode == 2
    assert again.stderr == (
        f"error: {tmp_path}/out: exists already; remove it or choose another name\n"
    )


# Processes of their own.
BOTH = [pytest.param(name, marks=pytest.mark.slow) for name in ("convert", "export")]


@pytest.mark.parametrize("name", BOTH)
def test_no_permission(name, source, tmp_path):
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and setpriv is not there to drop that")
    if os.geteuid() == 0:
        tried = subprocess.run([*nobody, sys.executable, "-c", ""], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"nobody but root may run this Python: {tried.stderr.strip()}")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    given = arguments(name, source(), closed)
    if os.geteuid() == 0:
        # Somebody else runs the program: let them come here and read.
        read = (*source().iterdir(), source(), *source().parents, *tmp_path.parents, tmp_path)
        for path in read:
            if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
                path.chmod(0o755)
    command = [sys.executable, "-m", f"train.{name}", *given]
    if os.geteuid() == 0:
        command = [*nobody, *command]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"HOME": str(closed), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    says = {
        "convert": f"{closed}/out: cannot be written (Permission denied); nothing is left of it",
        "export": f"{closed}/run: Permission denied; see who may read and write there",
    }
    assert done.stderr == f"error: {says[name]}\n"
    assert not list(closed.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "export"])
def test_disk_full(name, source, tmp_path):
    """A tmpfs smaller than the model, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["unshare", "--mount", "--map-root-user"]
    probe = f"mount -t tmpfs -o size=64k none {small}"
    tried = subprocess.run([*mount, "sh", "-c", probe], capture_output=True)
    if tried.returncode:
        pytest.skip("no mount namespaces here")
    given = " ".join(arguments(name, source(), small))
    script = (
        f"{probe} && {sys.executable} -m train.{name} {given}; "
        f"code=$?; find {small} -type f; exit $code"
    )
    done = subprocess.run(
        [*mount, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    target = small / ("out" if name == "convert" else "run/export/model")
    assert done.stderr == (
        f"error: {target}: cannot be written (No space left on device); nothing is left of it\n"
    )
    left = [line for line in done.stdout.splitlines() if line.startswith(str(small))]
    assert not [line for line in left if "model" in line.removeprefix(str(small)) or "out" in line]


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_half_made(source, tmp_path):
    """Killed between two shards: the target is not there, and the same command then succeeds."""
    script = (
        "import os, sys, signal\n"
        "from dynarag_jax.exchange import tensors\n"
        "write = tensors._write_shard\n"
        "def once(path, *rest):\n"
        "    if '00002-of' in path.name:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(path, *rest)\n"
        "tensors._write_shard = once\n"
        "from dynarag_jax.launch.program import main\n"
        "main('convert', sys.argv[1:])\n"
    )
    given = [str(source()), str(tmp_path / "out"), "--shard_bytes", "30000"]
    done = subprocess.run(
        [sys.executable, "-c", script, *given], cwd=ROOT, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*/model-00001-of-*"))
    convert(Convert(*given[:2], shard_bytes=30_000))
    np.testing.assert_array_equal(logits_of(tmp_path / "out"), logits_of(source()))
