"""Add passages to an indexed corpus and remove others.

    python -m train.update configs/wikipedia_update.py --add new.jsonl --remove gone.txt

Writes passages/, vectors/ and index/ into RUN/update, which retrieve reads.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("update")
