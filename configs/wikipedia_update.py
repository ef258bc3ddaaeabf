"""Wikipedia with passages added and removed, after configs/wikipedia.py: its vectors stay.

    python -m train.pipeline configs/wikipedia_update.py \
        --update.add new.jsonl --update.remove gone.txt

A passage of ``new.jsonl`` whose id is known replaces the one that has it.
"""

from configs.wikipedia import ENCODER, run
from dynarag_jax.stages import Retrieve, Update

__all__ = ["run", "stages"]

stages = {
    "update": Update(
        embedded="{run}/embed",
        indexed="{run}/index",
        add=("new.jsonl",),
        encoder=ENCODER,
        dtype="bfloat16",
    ),
    "retrieve_updated": Retrieve(
        embedded="{run}/update",
        indexed="{run}/update",
        questions=("train.jsonl", "evaluation.jsonl"),
        encoder=ENCODER,
        passages=45,
        evaluate=True,
    ),
}
