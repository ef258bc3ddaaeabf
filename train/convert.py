"""Import a Hugging Face checkpoint, check it, and export it again.

    python -m train.convert SOURCE TARGET --check
    python -m train.convert org/name merged --adapters adapters --dtype bfloat16

Prints the largest difference of each tensor and of the logits with --check.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("convert")
