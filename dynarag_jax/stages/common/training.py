"""What the training programs share: progress, metrics, the closing line."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dynarag_jax.exchange.cards import model_card
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.stopping import Stopping
from dynarag_jax.models.decoder import count_parameters
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.training.checkpoints import latest_step
from dynarag_jax.training.config import Train
from dynarag_jax.training.loop import Figures, Stopped, Watch
from dynarag_jax.training.run import ExampleSource, Start, begin, train
from dynarag_jax.training.sources import require_batches

TITLE = "A dynamic reranker and generator"
ABOUT = """Trained with the method of DynamicRAG (arXiv 2505.07233). Given a question and numbered
passages it writes the ids of the passages to read, `[3], [1]` or `None`; given a question and
passages it writes the answer. Use the prompts of `dynarag_jax.prompts` unchanged."""


SILENCE = 10.0
"""seconds after which a loss on the console is an old one"""


def models(context: Context, stage: Train) -> dict[str, Path]:
    """The models a training stage begins with."""
    named = {"init": stage.init, "tokenizer": stage.tokenizer, "adapters": stage.adapters}
    return {name: context.model(path) for name, path in named.items() if path}


def inputs(context: Context, stage: Train) -> dict[str, Path]:
    """The files a training stage reads."""
    return {"questions": context.path(stage.questions)} | models(context, stage)


def start_stage(context: Context, stage: Train, weights: bool = True) -> Start:
    """What a training stage begins with, from the places that its configuration names.

    Weights that a checkpoint of the stage holds, too, stay on disk.
    """
    if weights and context.unfinished is not None:
        weights = latest_step(context.unfinished / "checkpoints") is None
    init, tokenizer, adapters = (
        context.optional_model(path) for path in (stage.init, stage.tokenizer, stage.adapters)
    )
    return begin(stage, init, tokenizer, context.training_mesh, adapters, weights)


def without_effect(stage: Train, platform: str) -> list[str]:
    """Options of the stage that change nothing, or that others overrule; a line each."""
    lines = stage.overruled()
    lines += [
        f"{name}.batch = 0: {what} are not trained"
        for name, what in (("reranker", "lists"), ("generator", "answers"))
        if not getattr(stage, name).batch
    ]
    if stage.optimizer.offload and platform == "cpu":
        lines.append(
            "optimizer.offload has no effect here: on a CPU the devices' memory is the host's"
        )
    return lines


def train_stage(
    context: Context,
    stage: Train,
    start: Start,
    sources: Sequence[ExampleSource],
    maker: ExampleMaker,
) -> None:
    """Run ``training.run.train`` with a progress bar, metrics, and an ear for signals.

    Raises:
      InputError: the batches do not divide; nothing was moved yet.
    """
    mesh = context.training_mesh
    require_batches(stage, sources, mesh)
    context.log(f"{count_parameters(start.cfg):,} parameters, mesh {dict(mesh.shape)}")
    for line in without_effect(stage, mesh.devices.flat[0].platform):
        context.log(line)

    def work(watch: Watch) -> None:
        directory = context.begin()
        card = model_card(
            TITLE,
            ABOUT,
            start.cfg.param_dtype,
            {"seed": context.run.seed, "stages": context.made_by()},
            stage.init,
            stage.prompts.style,
            stage.prompts.thought_tokens,
        )
        train(
            stage,
            start,
            sources,
            mesh,
            context.run.seed,
            directory,
            peak=context.peak_flops,
            watch=watch,
            card=card,
        )

    def flush() -> None:
        if maker.cache is not None:
            maker.cache.flush()

    cut = watched(context, work, flush)
    reads = maker.reads
    context.log(f"prompts: {reads.tokenized} tokenized, {reads.read} read from the cache")
    say_cut(context, cut)


def say_cut(context: Context, cut: Counter[str]) -> None:
    """Log what was cut to fit, if anything was."""
    if cut := +cut:
        context.log("cut to fit: " + ", ".join(f"{name} {n}" for name, n in cut.items()))


def watched(
    context: Context, work: Callable[[Watch], None], finally_: Callable[[], None] = lambda: None
) -> Counter[str]:
    """Run a training with a progress bar, metrics, and an ear for signals.

    Args:
      work: the training.
      finally_: called in the end, however it ends.

    Returns:
      What the figures say was cut to fit, by name.
    """
    shown: dict[str, str] = {}
    cut: Counter[str] = Counter()
    reported = begun = 0
    told = time.monotonic()

    with context.progress(None, context.stage) as bar, Stopping() as stopping:

        def on_begin(first: int, steps: int) -> None:
            nonlocal reported, begun
            context.truncate_metrics(first)
            bar.start_at(first, steps)
            reported = begun = first

        def on_ready(step: int, latest: Callable[[], Figures]) -> None:
            # The first loss at once, and others where metrics are too far apart to wait for.
            nonlocal told
            if not context.primary or (step > begun + 1 and time.monotonic() - told < SILENCE):
                return
            told, loss = time.monotonic(), latest().get("loss", math.nan)
            if math.isfinite(loss):
                shown.update(loss=f"{loss:.3f}")
                bar.set_postfix(shown)
                if step == begun + 1:
                    context.log(f"step {step} of {bar.total}: loss {loss:.3f}")

        def on_figures(step: int, figures: Figures) -> None:
            nonlocal reported, told
            told = time.monotonic()
            context.metrics(step, **figures)
            if "loss" in figures:
                shown.update(loss=f"{figures['loss']:.3f}")
            if "mfu" in figures:
                shown.update(mfu=f"{100 * figures['mfu']:.0f} %")
            bar.set_postfix(shown)
            for name, value in figures.items():
                if "/dropped_" in name:
                    cut[name] += round(value * (step - reported))
            reported = step

        try:
            work(
                Watch(
                    log=context.log,
                    on_begin=on_begin,
                    on_figures=on_figures,
                    on_step=lambda: bar.update(1),
                    on_ready=on_ready,
                    stop=stopping,
                )
            )
        except Stopped as stopped:
            context.log(str(stopped))
            stopping.interrupt()
        finally:
            finally_()
    return cut
