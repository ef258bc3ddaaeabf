"""Build the index of an embedded corpus.

python -m train.index configs/wikipedia.py
python -m train.index configs/wikipedia.py --target_recall 0.99
"""

from __future__ import annotations

from dynarag_jax.stages import BuildIndex
from train.corpus import INDEX, VECTORS, embedded, index_of
from train.program import Context, main


def run(context: Context, stage: BuildIndex) -> None:
    """Write index/."""
    directory = context.path(stage.embedded)
    context.manifest(inputs={"vectors": directory / VECTORS / "manifest.json"})
    _, store, vectors = embedded(context, stage.embedded)
    place = context.stage_directory / INDEX
    index_of(context, store, vectors, place, stage.index, stage.target_recall)


if __name__ == "__main__":
    main("index", BuildIndex, run)
