r"""Write the expert's list of each question, to be imitated by behavior cloning.

    python -m train.label configs/quickstart.py --source gold
    python -m train.label configs/llama3_8b.py --source scores --scorer /models/monot5-base
    python -m train.label configs/llama3_8b.py --source judge --judge.url http://host:8000/v1 \
        --judge.model NAME

Writes each question file with its lists into RUN/label, and says their mean length.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("label")
