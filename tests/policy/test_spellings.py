"""Lists in the tokens of real tokenizers: spelled, sampled from random weights, read back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy.grammar import build_grammar, find_spelling, read_list
from dynarag_jax.prompts import format_list, parse_list
from dynarag_jax.sampling.sampler import Sampling, sample
from tests.policy.tokenizer_families import WRITES

IDS = 20
NEIGHBORS = "byte-bpe-merging-across-everything"
"""The family whose tokens depend on what stands around them, so that pieces are spelled alone."""


def squeezed(text):
    return text.replace(" ", "")


def test_spelling_is_the_tokenizers_own_and_reads_back(family):
    name, tokenizer = family
    spelling = find_spelling(tokenizer, IDS)
    lists = [(), *((i,) for i in range(1, IDS + 1)), tuple(range(1, IDS + 1))]
    lists += [(i, j) for i in range(1, IDS + 1) for j in range(1, IDS + 1) if i != j]
    own = 0
    for ids in lists:
        tokens = spelling.spell(ids)
        assert read_list(spelling, [*tokens, 0, 0]) == ids
        assert squeezed(tokenizer.decode(tokens[:-1])) == squeezed(format_list(ids))
        own += tokens[:-1] == tokenizer(format_list(ids), add_special_tokens=False)["input_ids"]
    if name == NEIGHBORS:
        assert own < len(lists)
    else:
        assert own == len(lists)


def test_the_families_of_the_hub_write_ids_as_they_are_known_to(family):
    name, tokenizer = family
    if name not in WRITES:
        pytest.skip("not a family of the hub")
    spelling = find_spelling(tokenizer, IDS)
    tokens = spelling.spell((12, 3))
    assert tokenizer.convert_ids_to_tokens(tokens[:-1]) == WRITES[name]
    assert tokens[-1] == tokenizer.eos_token_id
    # Where there is no token to pad with, the end of text pads too: lengths tell them apart.
    shared = tokenizer.pad_token_id == tokenizer.eos_token_id
    assert shared == (name in ("llama2-mistral", "llama3"))
    assert read_list(spelling, tokens + 3 * [tokenizer.pad_token_id]) == (12, 3)


def test_ids_are_told_apart_by_their_first_token_where_the_tokenizer_allows(family):
    name, tokenizer = family
    spelling = find_spelling(tokenizer, 9)
    grammar = build_grammar(spelling)
    if name == "llama3":
        assert build_grammar(find_spelling(tokenizer, IDS)).id_position == 1
        first = np.asarray(build_grammar(find_spelling(tokenizer, IDS)).first_token)
        assert len(set(first.tolist())) == IDS  # numbers of two digits are one token
    if name != NEIGHBORS:
        assert len(set(np.asarray(grammar.first_token).tolist())) == 9
    for i in range(1, 10):
        assert spelling.spell([i])[grammar.id_position] == grammar.first_token[i - 1]


@pytest.fixture(scope="module")
def sampled(pad):
    """``sampled(spelling)``: 1,500 lists of random weights over n = 0 to 20 passages."""
    cfg = DecoderConfig(
        vocab=448, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=24, positions=256
    )
    params = jax.tree.map(lambda x: 3 * x, decoder.init_params(cfg, jax.random.key(0)))
    n: Any = np.repeat(np.arange(IDS + 1), 2).astype(np.int32)
    trunk: Any = np.random.default_rng(0).integers(3, 400, (len(n), 5)).astype(np.int32)
    keys = jax.random.split(jax.random.key(1), len(n))

    @jax.jit
    def run(params, grammar, end):
        return sample(
            cfg, params, trunk, jnp.full(len(n), 5), keys,
            branches=36, max_tokens=136, end=end, sampling=Sampling(), grammar=grammar,
            n_passages=n,
        )  # fmt: skip

    def make(spelling, **limits):
        grammar = pad(build_grammar(spelling, **limits), 160, 24)
        return n, run(params, grammar, np.int32(spelling.end))

    return make


def test_sampled_lists_are_valid_in_every_family(family, sampled):
    """Every family 1,512 lists."""
    _, tokenizer = family
    spelling = find_spelling(tokenizer, IDS)
    assert spelling.longest(IDS) <= 136
    n, out = sampled(spelling)
    assert out.finished.all()
    lengths = set()
    for row, shown in enumerate(n.tolist()):
        for tokens, size in zip(out.tokens[row].tolist(), out.lengths[row].tolist(), strict=True):
            assert not any(tokens[size:])
            ids = read_list(spelling, tokens[:size])  # raises unless every token is in place
            text = tokenizer.decode(tokens[: size - 1])
            # The text, in the grammar's own spacing, passes the strict parser: 1..shown, no repeat.
            spaced = squeezed(text).replace(",", ", ")
            assert parse_list(spaced, shown) == ids
            lengths.add((shown, len(ids)))
    assert (0, 0) in lengths
    assert any(shown > 0 and size == 0 for shown, size in lengths), "None was never chosen"
    assert max(size for _, size in lengths) > 3


def test_sampled_lists_keep_to_the_limits(numbers_as_words, sampled):
    spelling = find_spelling(numbers_as_words, IDS)
    n, out = sampled(spelling, max_ids=4, min_ids=2)
    sizes = np.array(
        [[len(read_list(spelling, tokens)) for tokens in row] for row in out.tokens.tolist()]
    )
    assert (sizes.max(-1) <= np.minimum(n, 4)).all()
    assert (sizes.min(-1) >= np.minimum(n, 2)).all()
    assert set(sizes[n > 4].ravel().tolist()) == {2, 3, 4}


# ---------------------------------------------------------------------------- refusals

WORDS = r"\[\d+\]|\w+|[^\w\s]"


def test_a_vocabulary_without_one_of_the_ids_is_refused(make_words):
    vocabulary = [f"[{i}]" for i in range(1, 20) if i != 13] + ["None", ","]
    tokenizer = make_words(WORDS, vocabulary)
    assert find_spelling(tokenizer, 12).ids[11] == (14,)
    with pytest.raises(InputError, match="cannot spell lists"):
        find_spelling(tokenizer, 19)


@pytest.mark.parametrize("missing", ["None", ","])
def test_a_vocabulary_without_none_or_separator_is_refused(make_words, missing):
    words = ["[1]", "[2]", "[3]", *({"None", ","} - {missing})]
    with pytest.raises(InputError, match="cannot spell lists"):
        find_spelling(make_words(WORDS, words), 3)


def test_a_tokenizer_without_end_of_text_is_refused(make_words):
    tokenizer = make_words(WORDS, ["[1]", "None", ","], unk_token="<unk>")
    with pytest.raises(InputError, match="eos_token"):
        find_spelling(tokenizer, 1)


def test_a_single_id(make_words):
    spelling = find_spelling(make_words(WORDS, ["[1]", "None", ","]), 1)
    assert read_list(spelling, spelling.spell([1])) == (1,)
    assert build_grammar(spelling).max_ids == 1
