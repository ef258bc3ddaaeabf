"""Build the index of an embedded corpus.

    python -m train.index configs/wikipedia.py
    python -m train.index configs/wikipedia.py --index.target_recall 0.99

Writes index/ into RUN/index, and says its measured recall.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("index")
