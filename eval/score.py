"""Score predictions, whoever made them: all metrics of the benchmarks, with intervals.

    python -m eval.score --questions nq.jsonl --predictions answers.jsonl --dataset nq
    python -m eval.score --questions nq.jsonl --predictions ours=a.jsonl theirs=b.jsonl
    python -m eval.score configs/bench.py

Prints the table, and writes scores.md, scores.json and rows.jsonl into RUN/score, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("score")
