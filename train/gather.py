"""Make a corpus and question files from questions that come with their passages.

    python -m train.gather configs/nq_litm.py --source FILE.jsonl.gz

Writes corpus.jsonl, train.jsonl and evaluation.jsonl into RUN/gather, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("gather")
