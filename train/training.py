"""What the training programs share: progress, metrics, the closing line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.models.decoder import count_parameters
from dynarag_jax.stages import Train
from dynarag_jax.training.examples import ExampleMaker
from dynarag_jax.training.loop import Figures
from dynarag_jax.training.run import Source, Start, train
from train.program import Context


def inputs(context: Context, stage: Train) -> dict[str, Path]:
    """The files a training stage reads."""
    named = {"questions": stage.questions, "init": stage.init, "tokenizer": stage.tokenizer}
    return {name: context.path(path) for name, path in named.items() if path}


def train_stage(
    context: Context, stage: Train, start: Start, sources: Sequence[Source], maker: ExampleMaker
) -> None:
    """Run ``training.run.train`` with a progress bar and metrics."""
    context.log(f"{count_parameters(start.cfg):,} parameters, mesh {dict(context.mesh.shape)}")
    shown: dict[str, str] = {}

    with context.progress(None, context.stage) as bar:

        def on_begin(first: int, steps: int) -> None:
            context.truncate_metrics(first)
            bar.total = steps
            bar.update(first)

        def on_figures(step: int, figures: Figures) -> None:
            context.metrics(step, **figures)
            shown.update(loss=f"{figures['loss']:.3f}")
            bar.set_postfix(shown)

        train(
            stage,
            start,
            sources,
            context.mesh,
            context.run.seed,
            context.stage_directory,
            log=context.log,
            on_figures=on_figures,
            on_begin=on_begin,
            on_step=lambda: bar.update(1),
        )
    cut = {name: value for name, value in vars(maker.counts).items() if value}
    if cut:
        context.log("cut while making examples: " + ", ".join(f"{k} {v}" for k, v in cut.items()))
