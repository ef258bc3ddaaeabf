"""Write the expert's list of each question, to be imitated by behavior cloning.

python -m train.label configs/quickstart.py --source gold
"""

from __future__ import annotations

from dynarag_jax.facts.expert import label_questions
from dynarag_jax.records import read_questions, write_questions
from dynarag_jax.stages import Label
from train.program import Context, main


def run(context: Context, stage: Label) -> None:
    """Label every question file and write it under its own name."""
    paths = [context.path(path) for path in stage.questions]
    context.manifest(inputs={path.name: path for path in paths})
    for path in paths:
        labeled = label_questions(
            read_questions(path), stage.source, seed=context.run.seed, noise=stage.noise
        )
        lists = [q.expert for q in labeled if q.expert is not None]
        write_questions(context.stage_directory / path.name, labeled)
        mean = sum(map(len, lists)) / max(len(lists), 1)
        context.log(f"{path.name}: {len(lists)} lists, {mean:.2f} passages on average")


if __name__ == "__main__":
    main("label", Label, run)
