"""Sample lists, answer from each, reward the answers: rollouts.jsonl, appended as they finish.

    python -m train.rollout configs/quickstart.py
    python -m train.rollout configs/quickstart.py --samples 4 --sampling.temperature 0.7
    python -m train.rollout configs/nq_litm.py --server.url http://host:8000/v1 --server.model NAME

Writes rollouts.jsonl, a line a question, into RUN/rollout.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("rollout")
