"""Read a corpus and embed its passages.

    python -m train.embed configs/wikipedia.py
    python -m train.embed configs/wikipedia.py --corpus.files psgs_w100.tsv.gz --stored bfloat16

Writes passages/ and vectors/ into RUN/embed; killed, it goes on with the next shard.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("embed")
