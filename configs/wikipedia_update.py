"""Wikipedia with passages added and removed, after configs/wikipedia.py: its vectors stay.

    python -m train.pipeline configs/wikipedia_update.py \
        --update.add new.jsonl --update.remove gone.txt

A passage of ``new.jsonl`` whose id is known replaces the one that has it.
"""

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.stages import Retrieve, Update

wikipedia = base_config(__file__, "wikipedia.py")
ENCODER = wikipedia.stages["embed"].encoder

run = wikipedia.run

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
