"""Write preference pairs of rollouts as text, for training with other tools.

    python -m train.pairs configs/quickstart.py
    python -m train.pairs configs/quickstart.py --which all --min_gap 0.1 --form llama-factory

Writes lists.jsonl, perhaps answers.jsonl, and counts.json into RUN/pairs, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("pairs")
