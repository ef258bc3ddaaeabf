"""Several sets of questions as one to train on, without any question that is held out.

    python -m train.mix configs/encoder.py

Writes train.jsonl, development.jsonl and evaluation.jsonl into RUN/mix, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("mix")
