"""What the training stages do where the policy is a small encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynarag_jax.config import MorePassages
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.encoder_policies import is_encoder_policy, policy_fingerprint
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import tokenizer_hash
from dynarag_jax.policy.encoder_policy import count_policy_parameters
from dynarag_jax.policy.kept_vectors import Vectors, VectorStore, frozen_vectors
from dynarag_jax.policy.pair_tokens import PairMaker
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Rollout
from dynarag_jax.stages.common.candidates import to_rerank
from dynarag_jax.stages.common.training import say_cut, watched
from dynarag_jax.training.config import Train
from dynarag_jax.training.encoder_run import (
    EncoderStart,
    begin_encoder_policy,
    train_encoder_policy,
)
from dynarag_jax.training.list_examples import behavior_lists, ranked_lists
from dynarag_jax.training.loop import Watch
from dynarag_jax.training.preferences import Expected, check_rollouts, judge
from dynarag_jax.training.sources import ExampleSource

PAGE = """---
library_name: sentence-transformers
pipeline_tag: text-ranking
---
# A dynamic reranker: a small encoder that says which passages to read, and how many

Trained with the method of DynamicRAG (arXiv 2505.07233) by dynarag_jax. A list head over the
encoder draws passages one by one, and *stop*. `config.json`, `model.safetensors` and the tokenizer
are those of a cross-encoder: sentence-transformers reads this directory as a CrossEncoder, whose
score is one feature of the list head. `list_policy.json` and `list_head.safetensors` are the head;
`manifest.json` says what made all of it, stage by stage.{interaction}
"""

_APART = """

Here candidates see each other inside the encoder: a CrossEncoder, which reads each by itself, gives
other scores than the policy's own."""


def begin(context: Context, stage: Train, log: Callable[[str], None]) -> EncoderStart:
    """What training of the policy begins with; what the stage sets to no effect is said."""
    for name in ("generator", "instructions", "answers"):
        stream: Any = getattr(stage, name, None)
        if stream is not None and stream.batch:
            log(f"an encoder policy writes no answers: the stream '{name}' is left out")
    return begin_encoder_policy(
        stage, context.model(stage.init), context.mesh, context.run.seed, log
    )


def vectors_for(
    context: Context,
    stage: Train,
    start: EncoderStart,
    questions: Sequence[Question],
    maker: PairMaker,
) -> Vectors | None:
    """The frozen encoder's vectors of all questions; None where the encoder is trained."""
    if stage.encoder.trained.part != "frozen":
        return None
    store = VectorStore.of_run(context.directory, start.cfg, start.params, create=True)
    with context.progress(len(questions), "vectors") as bar:
        return frozen_vectors(
            start.cfg, start.params, questions, maker, context.mesh, bar.update, store
        )


def train_lists(
    context: Context, stage: Train, start: EncoderStart, sources: Sequence[ExampleSource]
) -> None:
    """Run ``train_encoder_policy`` with a progress bar, metrics, and an ear for signals."""
    counts = count_policy_parameters(start.cfg)
    context.log(
        f"{counts['encoder']:,} parameters of the encoder, {counts['head']:,} of the list head, "
        f"mesh {dict(context.mesh.shape)}"
    )
    page = PAGE.format(interaction=_APART if start.cfg.interaction else "")

    def work(watch: Watch) -> None:
        directory = context.begin()
        manifest = {"seed": context.run.seed, "stages": context.made_by()}
        train_encoder_policy(
            stage,
            start,
            sources,
            context.mesh,
            context.run.seed,
            directory,
            watch=watch,
            card=ModelCard(page, manifest),
        )

    say_cut(context, watched(context, work))


def with_passages(
    questions: Sequence[Question], name: str | Path, log: Callable[[str], None]
) -> list[Question]:
    """The questions that have candidates; how many have none is said.

    Raises:
      InputError: none has.
    """
    kept = [question for question in questions if question.passages]
    if len(kept) < len(questions):
        log(f"{name}: {len(questions) - len(kept)} of {len(questions)} questions have no passages")
    if questions and not kept:
        raise InputError(f"{name}: no question has passages; retrieve some first")
    return kept


def train_on_experts(
    context: Context, stage: Train, files: Mapping[str, float], shuffled: float
) -> None:
    """Behavior cloning of the experts' lists by an encoder policy.

    Args:
      files: question files, the stage's own first, with how many of their examples are drawn for
        one of the first's.
      shuffled: of the stage; there is nothing to shuffle here.

    Raises:
      InputError: a question or the configuration is wrong.
    """
    if shuffled:
        raise InputError(
            f"shuffled = {shuffled}: an encoder policy reads candidates as a set, and their order "
            f"changes nothing; leave it at 0"
        )
    start = begin(context, stage, context.log)
    maker = start.pair_maker()
    asked = {path: questions_of(context, stage, path) for path in files}
    every = list({q.id: q for questions in asked.values() for q in questions}.values())
    if len(every) < sum(map(len, asked.values())) and stage.encoder.trained.part == "frozen":
        raise InputError(
            "two of the question files have questions of one id, and vectors are kept by id; give "
            "them ids of their own"
        )
    vectors = vectors_for(context, stage, start, every, maker)
    first, *others = (
        behavior_lists(stage, start.cfg, questions, maker, vectors, context.run.seed)
        for questions in asked.values()
    )
    weights = list(files.values())[1:]
    steps = max(source.shape.steps for source in (first, *others))
    source = replace(
        first,
        shape=replace(first.shape, steps=steps),
        others=tuple(zip(others, weights, strict=True)),
    )
    train_lists(context, stage, start, [source])


def questions_of(context: Context, stage: Train, path: str) -> list[Question]:
    """The questions of a file with candidates that the policy learns from; what is cut is said."""
    file = context.path(path)
    questions = with_passages(read_questions(file, context.log), file.name, context.log)
    return within(questions, stage.prompts.ids, stage.more_passages, file.name, context.log)


def within(
    questions: Sequence[Question],
    ids: int,
    rule: MorePassages,
    name: str,
    log: Callable[[str], None],
) -> list[Question]:
    """The questions as an encoder policy reads them: all candidates, unless the rule says less."""
    if rule == "windows":
        return list(questions)
    return to_rerank(questions, ids, rule, name, log)[0]


def train_on_rollouts(
    context: Context,
    stage: Train,
    rollouts: Sequence[Rollout],
    rollouts_path: Path,
    reference: Path | None,
    min_gap: float,
) -> None:
    """Train an encoder policy on sampled lists and their rewards.

    Args:
      reference: the policy behind the reference log-probabilities; None is where training begins.

    Raises:
      InputError: rollouts, questions or the configuration are wrong.
    """
    if stage.encoder.negatives:
        raise InputError(
            f"encoder.negatives = {stage.encoder.negatives} is of behavior cloning: sampled lists "
            f"are learned among the candidates they were sampled from; set it to 0"
        )
    questions = questions_of(context, stage, stage.questions)
    by_id = {question.id: question for question in questions}
    if unknown := [r.id for r in rollouts if r.id not in by_id]:
        raise InputError(
            f"{rollouts_path}: question '{unknown[0]}' is not in {stage.questions}; give the "
            f"question file that was sampled from"
        )
    start = begin(context, stage, context.log)
    maker = start.pair_maker()
    objectives = stage.reranker.objectives
    weights, where = "", ""
    if objectives.reads("reference"):
        source = reference or start.stored.source
        if not is_encoder_policy(source):
            raise InputError(
                f"{source}: no encoder policy, and the objectives read its log-probabilities; name "
                f"the policy behind them as 'reference'"
            )
        weights, where = policy_fingerprint(source), str(source)
    expected = Expected(
        rollouts_path, weights, where, tokenizer_hash(start.stored.tokenizer), start.cfg.max_list,
        start.cfg.encoder.dtype,
    )  # fmt: skip
    check_rollouts(rollouts, objectives, expected)
    pairs = not objectives.reads("groups")
    judged, counts = judge(rollouts, min_gap, pairs=pairs)
    context.log(
        f"{counts.kept} {'pairs' if pairs else 'groups'} of lists from {len(rollouts)} questions; "
        f"left out: {counts.ties} rewarded alike, {counts.single} with one distinct list"
        + (f", {counts.missing} for want of whole rewards" if counts.missing else "")
    )
    if not judged:
        raise InputError(f"{rollouts_path}: no question has two lists of different reward")
    own = [by_id[one.rollout.id] for one in judged]
    vectors = vectors_for(context, stage, start, own, maker)
    source = ranked_lists(stage, start.cfg, judged, by_id, maker, vectors)
    for index in range(min(32, source.size)):
        source.make(0, index)  # what is wrong is refused before training begins
    train_lists(context, stage, start, [source])
