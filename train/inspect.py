"""Say what is in a file of questions, passages or judgments, in one screen.

    python -m train.inspect FILE
    python -m train.inspect train.jsonl --against evaluation.jsonl

Prints format, counts, lengths, what is odd, and which questions other files share, in seconds.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("inspect")
