"""Run every stage of a config file in order: done ones are skipped, others continue.

    python -m train.pipeline configs/quickstart.py
    python -m train.pipeline configs/quickstart.py --run.seed 1 --sft.optimizer.learning_rate 2e-3

The quickstart takes about eight minutes on two CPU cores; run again, it ends at once.
"""

from dynarag_jax.launch.pipeline import main

if __name__ == "__main__":
    main()
