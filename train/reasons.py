r"""Ask a server for the reasons behind each list: thoughts before lists, to be imitated.

    python -m train.reasons configs/llama3_8b.py --prompts.thought_tokens 256 \
        --tokenizer meta-llama/Llama-3.1-8B --server.url http://host:8000/v1 --server.model NAME

Writes each question file with thoughts before its lists into RUN/reasons, for train.sft, and says
how many lists have none, and why.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("reasons")
