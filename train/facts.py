"""Generate the facts world: a corpus, questions, and a word-level tokenizer for them.

    python -m train.facts configs/quickstart.py

Writes corpus.jsonl, train.jsonl, evaluation.jsonl and tokenizer/ into RUN/facts, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("facts")
