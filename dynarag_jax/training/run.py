"""A training stage from its configuration: streams of examples into one sharded step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.adapters import load_adapters, require_adaptable
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.decoders import decoder_config, load_decoder
from dynarag_jax.exchange.tokenizers import check_vocabulary, load_tokenizer
from dynarag_jax.models import kernels
from dynarag_jax.models.config import Params
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.batches import BatchShape, Example
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.policy.tokens import TokenCache
from dynarag_jax.records import Question
from dynarag_jax.sharding import axis_size
from dynarag_jax.training.checkpoints import Best, Checkpoints
from dynarag_jax.training.config import Stream, Train
from dynarag_jax.training.exports import Start, save_trained
from dynarag_jax.training.instructions import Instruction, instruction_examples
from dynarag_jax.training.loop import Watch
from dynarag_jax.training.meter import Meter
from dynarag_jax.training.optimizer import make_optimizer
from dynarag_jax.training.order import uniform_hash
from dynarag_jax.training.posteriors import Posterior
from dynarag_jax.training.sources import (
    ExampleSource,
    Input,
    require_batches,
    step_operations,
    total_steps,
)
from dynarag_jax.training.staged import fit_stage
from dynarag_jax.training.step import (
    Adapting,
    State,
    StreamLoss,
    init_state,
    make_step,
    state_shapes,
    state_shardings,
)


def begin(
    stage: Train,
    init: Path | None,
    tokenizer: Path | None,
    mesh: Mesh,
    adapters: Path | None = None,
    weights: bool = True,
) -> Start:
    """Load or shape the model, its tokenizer and what is trained beside it.

    Args:
      weights: False leaves the weights of a model that is trained whole on disk: a checkpoint has
        them all.

    Raises:
      InputError: neither a model to start from nor a tokenizer, adapters without a model, or they
        do not fit.
    """
    if tokenizer is None and init is None:
        raise InputError("a new model needs a tokenizer: set 'tokenizer' (or 'init' to a model)")
    loaded = load_tokenizer(str(tokenizer or init))
    settings = {
        name: getattr(stage.model, name) for name in ("dtype", "remat", "attention", "unroll")
    }
    adapting = stage.lora.rank > 0 or adapters is not None
    if init is not None and (weights or adapting):
        cfg, params = load_decoder(
            init,
            stage.model.param_dtype,
            shardings=lambda cfg: param_shardings(cfg, mesh),
            **settings,
        )
    elif init is not None:
        cfg, params = decoder_config(init, stage.model.param_dtype, **settings), None
    else:
        # A vocabulary that divides shards evenly and is kind to matrix units.
        cfg, params = replace(stage.model, vocab=-(-len(loaded) // 64) * 64), None
    check_vocabulary(cfg, loaded, str(tokenizer or init))
    spelling, grammar = list_grammar(loaded, stage.prompts)
    start = Start(cfg, params, loaded, spelling, grammar, str(init or ""))
    if not adapting:
        return start
    require_adaptable(cfg)
    if params is None:
        raise InputError("adapters need a model to adapt: set 'init', or 'lora.rank' to 0")
    if adapters is None:
        return replace(start, lora=stage.lora)
    lora, begun = load_adapters(adapters, cfg, lambda lora: param_shardings(cfg, mesh, lora))
    if stage.lora.rank not in (0, lora.rank):
        raise InputError(
            f"{adapters}: the adapters have rank {lora.rank}, the configuration says "
            f"{stage.lora.rank}; leave 'lora.rank' at 0 to take theirs"
        )
    return replace(start, lora=replace(lora, dropout=stage.lora.dropout), adapters=begun)


def example_maker(stage: Train, start: Start, cache: TokenCache | None = None) -> ExampleMaker:
    """The maker of a stage's examples, with tokenized prompts from ``cache``."""
    return ExampleMaker(
        start.tokenizer,
        start.spelling,
        stage.prompts,
        rerank_length=stage.reranker.length,
        answer_length=stage.generator.length,
        cache=cache,
        positions=start.cfg.positions,
        strict=start.cfg.strict_positions,
    )


def reranker_source(
    stage: Train,
    start: Start,
    size: int,
    branches: int,
    make: Callable[[int, int], Example],
) -> ExampleSource:
    """The stream of lists: ``size`` examples of ``branches`` branches, made by (epoch, index)."""
    p, stream = stage.prompts, stage.reranker
    longest = start.spelling.longest(p.max_list)
    thinks = start.spelling.thought is not None
    steps = bool(stream.objectives.reads("behavior"))
    shape = BatchShape(stream.length or p.rerank_tokens, branches, longest, p.ids, thinks, steps)
    return ExampleSource("reranker", stream, size, make, shape)


def answers_source(
    stage: Train, stream: Stream, size: int, branches: int, make: Callable[[int, int], Example]
) -> ExampleSource:
    """The stream of judged answers: ``size`` examples of ``branches`` branches."""
    p = stage.prompts
    shape = BatchShape(stream.length or p.answer_prompt_tokens, branches, p.answer_tokens, p.ids)
    return ExampleSource("answers", stream, size, make, shape)


def _require_supervised(name: str, stream: Stream, lists: bool = False) -> None:
    """Refuse objectives that would do nothing on given targets."""
    reads = stream.objectives.reads
    idle = [*reads("pairs"), *reads("groups"), *([] if lists else reads("ids"))]
    if idle and stream.batch:
        raise InputError(
            f"{name}: objective '{idle[0]}' has nothing to learn from in this stream: it reads "
            f"{'ranked lists' if idle[0] in reads('ids') else 'sampled branches'}; "
            f"set its weight to 0"
        )


def behavior_source(
    stage: Train,
    start: Start,
    questions: Sequence[Question],
    maker: ExampleMaker,
    seed: int,
    shuffled: float = 0.0,
) -> ExampleSource:
    """Behavior cloning of the experts' lists, ``shuffled`` of them over shuffled candidates.

    Questions without a list are left out: a label stage has none where it knows none.

    Raises:
      InputError: no question has a list.
    """
    _require_supervised("reranker", stage.reranker, lists=True)
    labeled = [q for q in questions if q.expert is not None]
    if stage.reranker.batch and questions and not labeled:
        raise InputError(
            f"none of {len(questions)} questions has an expert's list, '{questions[0].id}' among "
            f"them; run the label stage"
        )

    def make(epoch: int, index: int) -> Example:
        question = labeled[index]
        rng = random.Random(f"{seed}/shuffled/{epoch}/{index}")
        if rng.random() < shuffled:
            question, _ = question.shuffled(stage.prompts.ids, rng)
        return maker.behavior(question)

    return reranker_source(stage, start, len(labeled), 1, make)


def instruction_source(
    stage: Train,
    stream: Stream,
    start: Start,
    instructions: Sequence[Instruction],
    longest: int,
    log: Callable[[str], None],
) -> ExampleSource:
    """The stream of instruction data; prompts or replies (``longest``) too long are left out."""
    _require_supervised("instructions", stream)
    p = stage.prompts
    length = stream.length or p.answer_prompt_tokens
    examples, left = instruction_examples(start.tokenizer, instructions, length, longest)
    log(f"{len(examples)} instructions; left out as too long: {left}")
    shape = BatchShape(length, 1, longest, p.ids)
    return ExampleSource("instructions", stream, len(examples), lambda _, i: examples[i], shape)


def generator_source(
    stage: Train,
    questions: Sequence[Question],
    maker: ExampleMaker,
    seed: int,
    posteriors: Mapping[str, Posterior] | None = None,
) -> ExampleSource:
    """Generator SFT over the questions that have answers, with passages by ``stage.contexts``.

    Args:
      posteriors: sampled lists of questions, by id, for the share ``contexts.sampled``.

    Raises:
      InputError: sampled lists are asked for where there are none.
    """
    _require_supervised("generator", stage.generator)
    stream, contexts = stage.generator, stage.contexts
    if contexts.sampled and stream.batch and not posteriors:
        raise InputError(
            f"contexts.sampled = {contexts.sampled} draws lists from rollouts, and this stage has "
            f"none; set it to 0, or train with feedback"
        )
    answerable = [q for q in questions if q.answers]

    def make(epoch: int, index: int) -> Example:
        question = answerable[index]
        draw = uniform_hash(seed, "contexts", epoch, index)
        gold = question.gold_list()
        if gold is not None and draw < contexts.gold:
            return maker.answer(question, gold)
        rng = random.Random(f"{seed}/{epoch}/{index}")
        n = min(len(question.passages), maker.prompts.ids)
        if gold is not None and draw < contexts.gold + contexts.padded:
            others = [i for i in range(1, n + 1) if i not in gold]
            added = rng.sample(others, min(rng.randint(1, contexts.extras), len(others)))
            chosen = [*gold, *added]
            if rng.random() < 0.5:
                rng.shuffle(chosen)
            return maker.answer(question, chosen)
        shares = contexts.gold + contexts.padded + contexts.random
        own = (posteriors or {}).get(question.id)
        if own is not None and shares <= draw < shares + contexts.sampled:
            return maker.answer(question, *rng.choices(own.lists, own.weights))
        if draw < shares or question.expert is None:
            return maker.answer(question, rng.sample(range(1, n + 1), rng.randint(0, n)))
        return maker.answer(question, question.expert[: maker.prompts.max_list])

    p = maker.prompts
    shape = BatchShape(stream.length or p.answer_prompt_tokens, 1, p.answer_tokens, p.ids)
    return ExampleSource("generator", stream, len(answerable), make, shape)


def mixed(
    sources: Sequence[ExampleSource],
    more: Mapping[str, Sequence[ExampleSource]],
    weights: Mapping[str, float],
) -> list[ExampleSource]:
    """Mix sources of further files into those of the same name, by the weights of the files.

    What a file has no examples for, such as answers, is left out of that stream.
    """
    return [
        replace(
            source,
            others=source.others
            + tuple(
                (other, weights[path])
                for path, others in more.items()
                for other in others
                if other.name == source.name and other.size
            ),
        )
        for source in sources
    ]


def train(
    stage: Train,
    start: Start,
    sources: Sequence[ExampleSource],
    mesh: Mesh,
    seed: int,
    directory: Path,
    *,
    watch: Watch,
    peak: float | None = None,
    card: ModelCard | None = None,
) -> None:
    """Train, with checkpoints under ``directory``, and write the model to ``directory/model``.

    A directory that holds checkpoints of the same stage continues where they end. Adapters are
    written to ``directory/adapters``, as PEFT does, and ``directory/model`` has them merged in.

    Args:
      start: what it holds of what is trained is given away, and gone afterwards.
      card: the model's README.md and manifest.json.
      peak: operations a second of all devices together, for the utilization.

    Raises:
      Stopped: ``watch.stop`` said so.
      InputError: the batches do not divide, or what the figures say cannot be trained on.
    """
    sources = require_batches(stage, sources, mesh)
    steps = total_steps(stage, sources)
    optimizer = make_optimizer(stage.optimizer, steps)
    best = Best(stage.best, stage.best_is == "highest", stage.keep_best) if stage.best else None
    checkpoints = Checkpoints(directory / "checkpoints", stage.keep, best)
    log, lora = watch.log, start.lora
    offload = stage.optimizer.offload
    layout = state_shardings(start.cfg, mesh, optimizer, lora, offload)
    trained = start.params if lora is None else start.adapters
    if checkpoints.latest() is not None:
        # The checkpoint has it all: what was loaded to begin with would only take memory.
        for x in jax.tree.leaves(trained):
            x.delete()
    shapes = state_shapes(start.cfg, optimizer, lora)
    state = checkpoints.restore(layout, shapes, log)
    if state is None:
        state = init_state(start.cfg, mesh, optimizer, trained, seed, lora, offload, donate=True)
    if lora:
        count = sum(x.size for x in jax.tree.leaves(state.params))
        log(f"adapters of rank {lora.rank} beside {', '.join(lora.names())}: {count:,} parameters")
    elif start.cfg.param_dtype == "bfloat16":
        log(
            "the weights are bfloat16: updates below about a 256th of a weight round away, "
            "'lost_updates' says how many; model.param_dtype float32 keeps them"
        )
    if int(state.step):
        log(f"continuing at step {int(state.step)} of {steps}")
    step = make_step(
        start.cfg,
        mesh,
        optimizer,
        start.grammar,
        {s.name: StreamLoss(s.stream.objectives, s.stream.weight) for s in sources},
        stage.accumulate,
        Adapting(lora, start.params) if lora and start.params else None,
        seed,
        offload,
        skip_nonfinite=stage.nonfinite == "skip",
    )
    log(kernels.choose(start.cfg, parts=axis_size("positions", mesh)).reason)
    data = Input(stage, sources, mesh, seed, steps)
    if stage.lengths > 1:
        chosen = ((n, ", ".join(map(str, of))) for n, of in data.buckets.lengths.items())
        log("prompts padded to " + "; ".join(f"{n}: {of}" for n, of in chosen))

    meter = Meter(step_operations(start.cfg, sources, lora), peak)
    state = fit_stage(stage, state, step, data, steps, checkpoints, directory, watch, meter)
    params = state.params
    if stage.final == "best":
        params = _best(checkpoints, layout, state, shapes, log)
    log(f"writing {directory / 'model'}")
    save_trained(directory, start, params, card=card)
    checkpoints.close()
    jax.block_until_ready(params)


def _best(
    checkpoints: Checkpoints, layout: State, state: State, shapes: State, log: Callable[[str], None]
) -> Params:
    """What was trained, of the best checkpoint; of the last one where none competes."""
    chosen = checkpoints.best_steps()
    if not chosen or chosen[0] == int(state.step):
        return state.params
    log(f"the model is that of step {chosen[0]}, the best by {vars(checkpoints.best)['figure']}")
    checkpoints.wait()
    for x in jax.tree.leaves((state.params, state.optimizer)):
        x.delete()
    return checkpoints.restore_params(layout.params, shapes.params, chosen[0])[1]
