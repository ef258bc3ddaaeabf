"""Train a byte-level BPE tokenizer on a corpus and its questions.

    python -m train.tokenizer configs/nq_litm.py

Writes tokenizer/ into RUN/tokenizer, in seconds for ten thousand passages.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("tokenizer")
