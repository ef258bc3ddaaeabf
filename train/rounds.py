"""On-policy rounds: rollout and feedback again and again, the best policy kept.

    python -m train.rounds configs/rounds.py
    python -m train.rounds configs/rounds.py --rounds 5 --patience 2

Needs what the stages before it made. Each round costs what rollout and feedback cost; RUN/rounds
holds the best model, and rounds.json every round's figure on the development questions.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("rounds")
