"""Answer questions from given lists: a reranker's, the retriever's, a scorer's, or none.

    python -m eval.answer configs/bench.py --questions runs/bench/rerank/nq.jsonl
    python -m eval.answer configs/bench.py --questions nq.jsonl --lists top-k --k 5
    python -m eval.answer configs/bench.py --questions nq.jsonl --lists static --scorer MONOT5 --k 5

Writes each question file's answers into RUN/answer.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("answer")
