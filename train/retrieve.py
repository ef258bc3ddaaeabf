"""Fill questions with their best passages of a corpus.

    python -m train.retrieve configs/quickstart.py --index.kind exact
    python -m train.retrieve configs/wikipedia.py --source hybrid --evaluate

Writes each question file with its passages, a TREC run and recall.json into RUN/retrieve.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("retrieve")
