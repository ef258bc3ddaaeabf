"""Write gold lists against hard negatives, as rollouts: preference data without sampling.

    python -m train.contrast configs/nq_litm.py --questions runs/nq_litm/label/train.jsonl
    python -m train.reference configs/nq_litm.py --rollouts runs/nq_litm/contrast/rollouts.jsonl

Writes rollouts.jsonl into RUN/contrast, in seconds; train.reference scores it for train.feedback.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("contrast")
