r"""Feedback: train on sampled lists and their rewards, generator SFT beside it.

    python -m train.feedback configs/quickstart.py
    python -m train.feedback configs/quickstart.py --reranker.objectives.dpo.beta 0.5
    python -m train.feedback configs/quickstart.py --reranker.objectives.dpo.weight 0 \
        --reranker.objectives.grpo.weight 1

Writes model/, a Hugging Face directory, and metrics.jsonl into RUN/feedback.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("feedback")
