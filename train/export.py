"""Export the trained model as a directory that transformers and vLLM load.

    python -m train.export configs/quickstart.py --dtype bfloat16
    python -m train.export configs/llama3_8b.py --checkpoint feedback

Writes model/ into RUN/export, and says how far it is from what was trained.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("export")
