r"""Compare systems on the same questions: paired differences with intervals and p-values.

    python -m eval.compare --questions nq.jsonl --predictions before=a.jsonl after=b.jsonl
    python -m eval.compare --questions q.jsonl --predictions runs/x/evaluate/predictions.jsonl \
        --baseline top-5

Prints the tables, and writes compare.md and compare.json into RUN/compare, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("compare")
