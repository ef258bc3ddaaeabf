r"""Compute the log-probabilities of rollouts anew: another reference, or rollouts from elsewhere.

    python -m train.reference configs/quickstart.py --model runs/quickstart/pretrain/model
    python -m train.feedback configs/quickstart.py \
        --rollouts runs/quickstart/reference/rollouts.jsonl \
        --reference runs/quickstart/pretrain/model

Writes rollouts.jsonl with other reference log-probabilities into RUN/reference.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("reference")
