"""Choose how readily a policy stops, on development questions: for a mean k, tokens or quality.

    python -m train.calibrate configs/encoder.py --target.mean_k 2
    python -m train.calibrate configs/quickstart.py --questions dev.jsonl --target.quality answer

Writes RUN/calibrate/model, the same weights with calibration.json beside them.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("calibrate")
