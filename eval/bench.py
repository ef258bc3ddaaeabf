"""All benchmarks in one run: models and baselines, and the paper's table beside them.

    python -m eval.bench configs/bench.py --models.DynamicRAG /models/dynamicrag-8b
    python -m eval.bench configs/bench.py --limit 500 --baselines none top-k

Prints the tables, and writes bench.md and all that score writes into RUN/bench.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("bench")
