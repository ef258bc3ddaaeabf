"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) in JAX, equal to the package ``bert-score``.

Every word piece of one text is matched with the most similar one of the other, by the cosine of an
encoder's hidden states at a middle layer. Precision averages over the candidate's word pieces,
recall over the reference's. Each distinct text is embedded once, whatever pairs it is in.

Dimension letters: B pairs, C and R word pieces of candidate and reference, D model width.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, load_encoder
from dynarag_jax.files import PathLike
from dynarag_jax.models.batching import Batches
from dynarag_jax.models.encoder import EncoderConfig, Params, encode
from dynarag_jax.sharding import make_mesh, named

LAYERS: Mapping[str, int] = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
}
"""The layer that the authors chose for each model, by its name on the hub."""


@dataclass(frozen=True)
class BertScores:
    """Precision, recall and F1 of each candidate, float32 [N]."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


# ---------------------------------------------------------------------------- on the devices


@functools.partial(jax.jit, static_argnames=("cfg",))
def _directions(
    cfg: EncoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Hidden states scaled to length 1: tokens [B, T] -> float32 [B, T, D]."""
    hidden = encode(cfg, params, tokens, lengths).astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-12)


@jax.jit
def match(
    candidates: jax.Array,
    candidate_weights: jax.Array,
    candidate_lengths: jax.Array,
    references: jax.Array,
    reference_weights: jax.Array,
    reference_lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Greedy matching of word pieces (the paper's equations 1 to 3).

    Args:
      candidates, references: directions [B, C, D] and [B, R, D].
      candidate_weights, reference_weights: of each word piece, [B, C] and [B, R]; 0 is left out of
        the mean, though the other side may still be matched with it.
      candidate_lengths, reference_lengths: [B]; what lies beyond takes no part.

    Returns:
      Precision and recall [B]; 0 where a side has no weight.
    """
    similar = jnp.einsum("bcd,brd->bcr", candidates, references, precision="highest")
    inside_c = jnp.arange(candidates.shape[1]) < candidate_lengths[:, None]
    inside_r = jnp.arange(references.shape[1]) < reference_lengths[:, None]
    similar = jnp.where(inside_c[:, :, None] & inside_r[:, None, :], similar, -jnp.inf)

    def mean(best: jax.Array, weights: jax.Array, inside: jax.Array) -> jax.Array:
        weights = jnp.where(inside & jnp.isfinite(best), weights, 0.0)
        total = weights.sum(axis=1)
        weighted = (weights * jnp.where(jnp.isfinite(best), best, 0.0)).sum(axis=1)
        return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)

    precision = mean(similar.max(axis=2), candidate_weights, inside_c)
    return precision, mean(similar.max(axis=1), reference_weights, inside_r)


# ---------------------------------------------------------------------------- the scorer


class BertScorer:
    """BERTScore by one encoder.

    Args:
      encoder: its tokenizer decides where long texts are cut.
      layer: whose hidden states are compared; 0 are the embeddings.
      baseline: precision, recall and F1 of unrelated texts: scores are moved so that these are 0.
      mesh: whose devices share the work; None takes all local ones.
      batch_tokens: word pieces of a full batch per device; None fits the machine.
      prefix_space: read the first word of a text as one within a text, where the tokenizer tells
        them apart (RoBERTa's). The package asks for it too, but transformers 5 does not listen.
      capacity: word pieces embedded at once, in host memory; more pairs take several passes.

    Raises:
      InputError: the encoder has no such layer, or a baseline of 1 or more.
    """

    def __init__(
        self,
        encoder: LoadedEncoder,
        layer: int,
        *,
        baseline: tuple[float, float, float] | None = None,
        prefix_space: bool = True,
        mesh: Mesh | None = None,
        batch_tokens: int | None = None,
        capacity: int = 1 << 19,
    ):
        cfg = encoder.config
        if not 0 <= layer <= cfg.layers:
            raise InputError(
                f"{encoder.name}: layer = {layer} must be one of 0 to {cfg.layers}, its layers"
            )
        if baseline is not None and (len(baseline) != 3 or not all(b < 1 for b in baseline)):
            raise InputError(f"BERTScore: baseline {baseline} must be three numbers below 1")
        self.encoder, self.baseline, self.capacity = encoder, baseline, capacity
        self.mesh = mesh or make_mesh(devices=jax.local_devices())
        self._cfg = replace(cfg, layers=layer)
        layers = jax.tree.map(lambda p: p[:layer], encoder.params["layers"])
        params = {**encoder.params, "layers": layers}
        self._params = jax.device_put(params, named(self.mesh, ()))
        run = functools.partial(_directions, self._cfg, self._params)
        weights = max(layer, 1) * cfg.width * (4 * cfg.width + 2 * cfg.mlp)
        self._batches = Batches(run, self.mesh, encoder.max_length, weights, batch_tokens)
        self._prefix = " " if prefix_space and _byte_level(encoder) else ""
        special = encoder.tokenizer.encode("").ids
        self._special, self._empty = frozenset(special), len(special)
        self.embedded = 0
        """texts embedded so far"""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Word pieces with special tokens; white space at the ends is not read."""
        stripped = [text.strip() for text in texts]
        given = [self._prefix + text if text else "" for text in stripped]
        return [e.ids for e in self.encoder.tokenizer.encode_batch_fast(given)]

    def score(
        self, candidates: Sequence[str], references: Sequence[str | Sequence[str]]
    ) -> BertScores:
        """Score each candidate against its reference, or the best of several.

        Where there are several, precision, recall and F1 are each the maximum over them, as in the
        package. A side without a word piece scores 0 in all three, before the baseline; so does a
        candidate without references.

        Raises:
          InputError: the two differ in number.
        """
        if len(candidates) != len(references):
            raise InputError(
                f"BERTScore: {len(candidates)} candidates and {len(references)} references"
            )
        golds = [[r] if isinstance(r, str) else list(r) for r in references]
        row: dict[str, int] = {}
        pairs = np.array(
            [
                (row.setdefault(c, len(row)), row.setdefault(r, len(row)))
                for c, gold in zip(candidates, golds, strict=True)
                for r in gold
            ],
            np.int64,
        ).reshape(-1, 2)
        owners = np.repeat(np.arange(len(golds)), [len(gold) for gold in golds])
        tokens = self.tokenize(list(row))
        scores = np.zeros((len(pairs), 3), np.float32)
        for some in self._passes(pairs, tokens):
            scores[some] = self._pass(pairs[some], tokens)
        best = np.zeros((len(golds), 3), np.float32)
        answered = np.unique(owners)
        best[answered] = -np.inf
        np.maximum.at(best, owners, scores)
        if self.baseline is not None:
            base = np.asarray(self.baseline, np.float32)
            best = (best - base) / (1 - base)
        return BertScores(*best.T)

    def _passes(self, pairs: np.ndarray, tokens: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Pairs whose texts fit into memory at once; those of one reference stay together."""
        order = np.argsort(pairs[:, 1], kind="stable")
        first, held, size = 0, set(), 0
        for at, row in enumerate(pairs[order]):
            new = [text for text in dict.fromkeys(row.tolist()) if text not in held]
            needed = sum(len(tokens[text]) for text in new)
            if held and size + needed > self.capacity:
                yield order[first:at]
                first, held, size = at, set(), 0
                new = list(dict.fromkeys(row.tolist()))
                needed = sum(len(tokens[text]) for text in new)
            held.update(new)
            size += needed
        if first < len(order):
            yield order[first:]

    def _pass(self, pairs: np.ndarray, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Precision, recall and F1 [N, 3] of pairs [N, 2] of texts."""
        # Texts without a word piece of their own match nothing.
        bare = np.array([len(ids) <= self._empty for ids in tokens])
        worded = np.flatnonzero(~bare[pairs].any(axis=1))
        scores = np.zeros((len(pairs), 3), np.float32)
        texts = np.unique(pairs[worded])
        lengths = np.array([len(tokens[t]) for t in texts], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.empty((int(starts[-1]), self._cfg.width), np.float32)
        for which, directions in self._batches.through([[tokens[t] for t in texts]]):
            for row, i in enumerate(which):
                flat[starts[i] : starts[i + 1]] = directions[row, : lengths[i]]
        self.embedded += len(texts)
        weights = [self._weights(tokens[t]) for t in texts]
        local = np.searchsorted(texts, pairs[worded])
        for some, sides in self._matching(local, lengths, starts, flat, weights):
            precision, recall = (np.asarray(x)[: len(some)] for x in match(*sides))
            total = precision + recall
            both = np.divide(
                2 * precision * recall, total, out=np.zeros_like(total), where=total != 0
            )
            scores[worded[some]] = np.stack([precision, recall, both], axis=1)
        return scores

    def _weights(self, ids: Sequence[int]) -> np.ndarray:
        """1 for every word piece, 0 for special tokens."""
        return np.array([i not in self._special for i in ids], np.float32)

    def _matching(
        self,
        pairs: np.ndarray,
        lengths: np.ndarray,
        starts: np.ndarray,
        flat: np.ndarray,
        weights: Sequence[np.ndarray],
    ) -> Iterator[tuple[np.ndarray, list[jax.Array]]]:
        """Yield (which pairs, the arguments of ``match``), pairs of like lengths together."""
        padded = 2 ** np.ceil(np.log2(np.maximum(lengths, 8))).astype(np.int64)
        shapes = padded[pairs]
        devices = self.mesh.size
        for shape in np.unique(shapes, axis=0) if len(shapes) else ():
            members = np.flatnonzero((shapes == shape).all(axis=1))
            fit = max(1, self._batches.tokens // int(shape.sum()))
            rows = devices * min(
                2 ** int(math.log2(fit)), 2 ** math.ceil(math.log2(-(-len(members) // devices)))
            )
            for first in range(0, len(members), rows):
                some = members[first : first + rows]
                sides: list[jax.Array] = []
                for side in (0, 1):
                    length = int(shape[side])
                    vectors = np.zeros((rows, length, self._cfg.width), np.float32)
                    scales = np.zeros((rows, length), np.float32)
                    sizes = np.zeros(rows, np.int32)
                    for row, text in enumerate(pairs[some, side]):
                        n = sizes[row] = lengths[text]
                        vectors[row, :n] = flat[starts[text] : starts[text + 1]]
                        scales[row, :n] = weights[text]
                    for array in (vectors, scales, sizes):
                        spread = ("batch",) + (None,) * (array.ndim - 1)
                        sides.append(jax.device_put(array, named(self.mesh, spread)))
                yield some, sides


def _byte_level(encoder: LoadedEncoder) -> bool:
    """Whether the space before a word is a part of it, and the first word has none."""
    pre: Any = json.loads(encoder.tokenizer.to_str()).get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    return any(p.get("type") == "ByteLevel" and not p.get("add_prefix_space") for p in parts)


def load_bert_scorer(
    source: PathLike,
    layer: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    **options: Any,
) -> BertScorer:
    """A scorer by the encoder of a directory, hub id or ``package:NAME``.

    Texts are cut at as many word pieces as the model has positions, as in the package, whatever
    the directory says of shorter ones for retrieval.

    Args:
      layer: None takes that of ``LAYERS``, by the last part of the source's name.
      options: those of ``BertScorer``.

    Raises:
      InputError: no such encoder, or no layer is given and none is known.
    """
    name = str(source).partition("@")[0].rstrip("/").rpartition("/")[2]
    chosen = LAYERS.get(name) if layer is None else layer
    if chosen is None:
        raise InputError(
            f"BERTScore: which layer of '{source}' to compare is not known; set 'layer' (the "
            f"authors chose {', '.join(f'{n} {k}' for n, k in LAYERS.items())})"
        )
    encoder = load_encoder(source, dtype=dtype)
    encoder.tokenizer.enable_truncation(encoder.config.positions)
    encoder = replace(encoder, max_length=encoder.config.positions)
    return BertScorer(encoder, chosen, **options)
