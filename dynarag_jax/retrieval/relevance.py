"""Pointwise relevance: each passage scored by MonoT5, a cross-encoder or Qwen3-Reranker.

This is the expert of DynamicRAG (arXiv 2505.07233): the passages that MonoT5 (arXiv 2003.06713)
scores above a threshold, best first, at most so many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange import qwen_reranker
from dynarag_jax.exchange.cross_encoders import ARCHITECTURES, load_cross_encoder
from dynarag_jax.exchange.decoders import load_decoder
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.t5 import load_t5, monot5_text, monot5_tokens
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import PathLike, read_json, read_jsonl
from dynarag_jax.models import decoder
from dynarag_jax.models.batching import Batches, Rows
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.encoder import EncoderConfig, Params, last_apart, pair_scores
from dynarag_jax.models.t5 import T5Config, monot5_scores
from dynarag_jax.parts import SharedRows
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.records import Question, passage_text
from dynarag_jax.sharding import make_mesh, named

# Pairs tokenized at a time, and full batches if those are more: enough to sort by length, few
# enough that their tokens take little memory and that no more is lost when the run is killed.
CHUNK = 512
FULL_BATCHES = 8

Pair = tuple[str, str]


class KeptScores(Protocol):
    """Scores that were computed before; ``kept_scores.ScoreStore`` is it."""

    def get(self, question: Question) -> list[float] | None:
        """The scores of a question's candidates, or None."""
        ...

    def put(self, question: Question, scores: Sequence[float]) -> None:
        """Keep the scores of a question's candidates."""
        ...


@dataclass(frozen=True)
class PairScorer:
    """A model that says how likely it is that a passage is relevant to a question.

    Attributes:
      kind: what it is, for records.
      columns: pairs of question and passage to the model's input, without padding.
      run: (params, tokens [B, T], lengths [B], further columns) to scores [B] between 0 and 1.
      params: the model's.
      longest: tokens of a pair at most; what is longer is cut.
      weights: multiplications a token takes, about.
    """

    kind: Literal["MonoT5", "cross-encoder", "Qwen3-Reranker"]
    columns: Callable[[Sequence[Pair]], list[Rows]]
    run: Callable[..., jax.Array]
    params: Any
    longest: int
    weights: float


def load_scorer(
    source: PathLike, dtype: Literal["float32", "bfloat16"] = "float32", longest: int = 512
) -> PairScorer:
    """Read a MonoT5, a cross-encoder with one logit or a Qwen3-Reranker.

    Args:
      dtype: type of weights and activations.
      longest: tokens of a question and a passage together, at most.

    Raises:
      InputError: no such model, or one that scores no pairs.
    """
    directory = model_directory(source)
    config = read_json(directory / "config.json")
    config = config if isinstance(config, dict) else {}
    architecture = (config.get("architectures") or [None])[0]
    if config.get("model_type") == "t5":
        return _monot5(directory, dtype, longest)
    if architecture in ARCHITECTURES:
        return _cross_encoder(directory, dtype, longest)
    if architecture == "Qwen3ForCausalLM":
        return _yes_or_no(directory, dtype, longest)
    raise InputError(
        f"{source}: architecture {architecture!r} scores no pairs of texts here; supported: "
        f"T5ForConditionalGeneration (MonoT5), Qwen3ForCausalLM (Qwen3-Reranker), "
        f"{', '.join(ARCHITECTURES)}"
    )


@functools.partial(jax.jit, static_argnames=("cfg", "true", "false"))
def _judge(
    cfg: T5Config, true: int, false: int, params: Params, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    # The empty rows of a batch attend to one token rather than to none.
    return jnp.exp(monot5_scores(cfg, params, tokens, jnp.maximum(lengths, 1), true, false))


def _monot5(directory: PathLike, dtype: Literal["float32", "bfloat16"], longest: int) -> PairScorer:
    cfg, params = load_t5(directory, param_dtype=dtype, dtype=dtype)
    tokenizer = load_tokenizer(directory)
    true, false = monot5_tokens(tokenizer)
    ending = tokenizer(" Relevant:")["input_ids"]

    def columns(pairs: Sequence[Pair]) -> list[Rows]:
        rows = tokenizer([monot5_text(*pair) for pair in pairs])["input_ids"]
        # What is cut is the passage's end: the judgment hangs on the word behind it.
        return [[r if len(r) <= longest else [*r[: longest - len(ending)], *ending] for r in rows]]

    size = cfg.layers * cfg.width * (4 * cfg.heads * cfg.head_size + (2 + cfg.gated) * cfg.mlp)
    return PairScorer(
        "MonoT5", columns, functools.partial(_judge, cfg, true, false), params, longest, size
    )


@functools.partial(jax.jit, static_argnames=("cfg",))
def _compare(
    cfg: EncoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array, types: jax.Array
) -> jax.Array:
    return jax.nn.sigmoid(pair_scores(cfg, params, tokens, jnp.maximum(lengths, 1), types))


def _cross_encoder(
    directory: PathLike, dtype: Literal["float32", "bfloat16"], longest: int
) -> PairScorer:
    model = load_cross_encoder(directory, dtype)
    cfg = model.config
    longest = min(longest, cfg.positions)
    model.tokenizer.enable_truncation(longest)

    def columns(pairs: Sequence[Pair]) -> list[Rows]:
        found = model.tokenizer.encode_batch(list(pairs))
        types = [[min(t, cfg.types - 1) for t in pair.type_ids] for pair in found]
        return [[pair.ids for pair in found], types]

    params = last_apart(cfg, model.params)
    size = cfg.layers * cfg.width * (4 * cfg.width + 2 * cfg.mlp)
    return PairScorer(
        "cross-encoder", columns, functools.partial(_compare, cfg), params, longest, size
    )


@functools.partial(jax.jit, static_argnames=("cfg", "yes", "no"))
def _affirm(
    cfg: DecoderConfig, yes: int, no: int, params: Params, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    lengths = jnp.maximum(lengths, 1)
    hidden, _ = decoder.prefill(cfg, params, tokens, lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    logits = decoder.logits(cfg, params, last)[:, 0]
    return jax.nn.sigmoid(logits[:, yes] - logits[:, no])


def _yes_or_no(
    directory: PathLike, dtype: Literal["float32", "bfloat16"], longest: int
) -> PairScorer:
    cfg, params = load_decoder(directory, dtype, dtype=dtype)
    tokenizer = load_tokenizer(directory)
    yes, no = qwen_reranker.verdicts(tokenizer)
    # The prompt's own words come on top of the pair's.
    frame = len(qwen_reranker.prompts(tokenizer, [("", "")], 1 << 20)[0])
    longest = min(longest + frame, cfg.positions)

    def columns(pairs: Sequence[Pair]) -> list[Rows]:
        return [qwen_reranker.prompts(tokenizer, pairs, longest)]

    heads = 2 * (cfg.heads + cfg.kv_heads) * cfg.head_size
    size = cfg.layers * cfg.width * (heads + 3 * cfg.mlp)
    return PairScorer(
        "Qwen3-Reranker", columns, functools.partial(_affirm, cfg, yes, no), params, longest, size
    )


def score_questions(
    scorer: PairScorer,
    questions: Sequence[Question],
    *,
    batch_tokens: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Iterator[tuple[Question, np.ndarray]]:
    """Score every candidate of every question; yields (question, scores [N]) in order.

    A score does not depend on what else is in the batch, but for rounding. Each batch is divided
    among the devices, all local ones if None.

    Raises:
      InputError: ``batch_tokens``, the tokens of a full batch per device, is below 1.
    """
    batches = scorer_batches(scorer, batch_tokens, devices)
    together = max(CHUNK, FULL_BATCHES * batches.tokens * batches.mesh.size // scorer.longest)
    for group in _groups(questions, together):
        yield from zip(group, score_together(scorer, batches, group)[0], strict=True)


def scorer_batches(
    scorer: PairScorer, batch_tokens: int | None = None, devices: Sequence[Any] | None = None
) -> Batches:
    """A scorer on the devices, ready for batches; arguments as of ``score_questions``."""
    mesh = make_mesh(devices=devices or jax.local_devices())
    run = functools.partial(scorer.run, jax.device_put(scorer.params, named(mesh, ())))
    return Batches(run, mesh, scorer.longest, scorer.weights, batch_tokens)


def score_together(
    scorer: PairScorer, batches: Batches, questions: Sequence[Question]
) -> tuple[list[np.ndarray], list[int]]:
    """The scores [N] of each question's candidates, and the tokens read for each question."""
    pairs = [(q.text, passage_text(p)) for q in questions for p in q.passages]
    columns = scorer.columns(pairs) if pairs else [[]]
    scores = np.empty(len(pairs), np.float32)
    for which, part in batches.through(columns) if pairs else ():
        scores[which] = part
    ends = np.cumsum([len(q.passages) for q in questions])[:-1]
    lengths = np.array([len(row) for row in columns[0]], np.int64)
    tokens = [int(part.sum()) for part in np.split(lengths, ends)]
    return np.split(scores, ends), tokens


def score_once(
    scorer: PairScorer,
    questions: Sequence[Question],
    output: PathLike,
    progress: Callable[[int], object] = lambda n: None,
    store: KeptScores | None = None,
) -> dict[str, list[float]]:
    """The scores of every candidate by question id; what stands in ``output`` is not made again.

    In a run of several processes each scores its share, on its own devices, and gets all scores.

    Args:
      output: JSONL that keeps them, a line a question, appended as they come.
      progress: hears how many candidates are scored, of all processes.
      store: what it holds is not computed, and what is computed it keeps.
    """
    team = ProcessTeam(None)
    with SharedRows(output, team) as rows:
        progress(sum(len(q.passages) for q in questions if q.id in rows.done))
        todo = team.mine([q for q in questions if q.id not in rows.done])

        def keep(question: Question, scores: Sequence[float]) -> None:
            rows.append({"id": question.id, "scores": scores})
            progress(len(scores) * team.count)

        left = []
        for question in todo:
            if store is None or (kept := store.get(question)) is None:
                left.append(question)
            else:
                keep(question, kept)
        for question, found in score_questions(scorer, left):
            scores = [round(float(s), 6) for s in found]
            if store is not None:
                store.put(question, scores)
            keep(question, scores)
        rows.finish(question.id for question in questions)
    return {row["id"]: row["scores"] for _, row in read_jsonl(output)}


def _groups(questions: Sequence[Question], together: int) -> Iterator[list[Question]]:
    """Questions of about ``together`` pairs each."""
    group: list[Question] = []
    pairs = 0
    for question in questions:
        group.append(question)
        pairs += len(question.passages)
        if pairs >= together:
            yield group
            group, pairs = [], 0
    if group:
        yield group


def above(scores: Sequence[float], threshold: float, limit: int) -> tuple[int, ...]:
    """The paper's list: 1-based positions of scores above ``threshold``, best first, ``limit``.

    Ties keep the retriever's order.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return tuple(i + 1 for i in order if scores[i] > threshold)[:limit]
