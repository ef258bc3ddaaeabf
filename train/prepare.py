"""Prepare a benchmark as ArrayRecord: read lazily, with random access, without TensorFlow.

    python -m train.prepare nq --from NQ-open.dev.jsonl --directory datasets
    python -m train.prepare hotpotqa --from train=TRAIN.json validation=DEV.json
    python -m train.prepare musique

Writes DIRECTORY/NAME, and says how many questions each split has.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("prepare")
