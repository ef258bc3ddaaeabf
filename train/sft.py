"""Behavior cloning of the expert's lists, generator SFT and instruction data, jointly.

    python -m train.sft configs/quickstart.py
    python -m train.sft configs/llama3_8b.py --optimizer.learning_rate 2e-5

Writes model/, a Hugging Face directory, and metrics.jsonl into RUN/sft.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("sft")
