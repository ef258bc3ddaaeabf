"""Write a model's list for every question; candidates beyond one prompt by windows.

    python -m eval.rerank configs/llama3_8b.py --questions questions.jsonl --model MODEL
    python -m eval.rerank configs/llama3_8b.py --sampling.method beam --windows.stride 20

Writes each question file with its lists into RUN/rerank.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("rerank")
