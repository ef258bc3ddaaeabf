"""The earlier name of train.feedback, which also trains group objectives.

    python -m train.feedback configs/quickstart.py

Under this name it does the same, and says so.
"""

from dynarag_jax.launch.console import Console
from dynarag_jax.launch.program import main

if __name__ == "__main__":
    Console("dpo").log("train.dpo is now train.feedback")
    main("feedback")
