"""Score models on questions, beside fixed top-k, no retrieval and oracle passages.

    python -m eval.evaluate configs/quickstart.py

Writes predictions.jsonl and scores.json into RUN/evaluate, and prints the table.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("evaluate")
