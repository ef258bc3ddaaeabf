"""Run every stage of a config file in order: what is done is skipped, what was cut off continues.

python -m train.pipeline configs/quickstart.py
python -m train.pipeline configs/quickstart.py --run.seed 1 --sft.optimizer.learning_rate 2e-3
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from dynarag_jax import evaluation_stages
from dynarag_jax import stages as kinds
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from eval import answer, bench, compare, evaluate, report, rerank, score
from train import (
    dpo,
    embed,
    export,
    facts,
    gather,
    index,
    label,
    pairs,
    reference,
    retrieve,
    rollout,
    sft,
    tokenizer,
    update,
)
from train.program import Context, main_pipeline, run_stage
from train.progress import clock, say

PROGRAMS: dict[type, Callable[[Context, Any], None]] = {
    kinds.Facts: facts.run,
    kinds.Gather: gather.run,
    kinds.Tokenizer: tokenizer.run,
    kinds.Embed: embed.run,
    kinds.BuildIndex: index.run,
    kinds.Update: update.run,
    kinds.Retrieve: retrieve.run,
    kinds.Label: label.run,
    kinds.Sft: sft.run,
    kinds.Rollout: rollout.run,
    kinds.Reference: reference.run,
    kinds.Pairs: pairs.run,
    kinds.Dpo: dpo.run,
    kinds.Rerank: rerank.run,
    kinds.Evaluate: evaluate.run,
    evaluation_stages.Answer: answer.run,
    evaluation_stages.Score: score.run,
    evaluation_stages.Compare: compare.run,
    evaluation_stages.Bench: bench.run,
    kinds.Export: export.run,
    kinds.Report: report.run,
}


def run(settings: Run, stages: Mapping[str, Any]) -> None:
    """Run the stages; each one's directory says whether it stands."""
    for name, stage in stages.items():
        if type(stage) not in PROGRAMS:
            raise InputError(f"stage '{name}': no program runs a {type(stage).__name__}")
    began, fresh = time.monotonic(), 0
    for number, (name, stage) in enumerate(stages.items(), 1):
        at = time.monotonic()
        context = Context(settings, stages, name)
        ran = run_stage(context, PROGRAMS[type(stage)])
        fresh += ran
        state = f"done in {clock(time.monotonic() - at)}" if ran else "done before"
        say(f"[{number}/{len(stages)}] {name}: {state}")
        # A stage's weights and compiled programs are not held while the next one runs.
        gc.collect()
    if fresh:
        say(f"{fresh} of {len(stages)} stages ran, in {clock(time.monotonic() - began)}")
    else:
        say(f"every stage stood already; results: {settings.directory}")


if __name__ == "__main__":
    main_pipeline(run)
