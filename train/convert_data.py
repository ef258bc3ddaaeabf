"""Convert a file of questions from one format to another.

    python -m train.convert_data SOURCE TARGET
    python -m train.convert_data SOURCE TARGET --format dpr --to contexts
    python -m train.convert_data queries.jsonl TARGET --qrels test.tsv --run bm25.trec --corpus C
    python -m train.convert_data DATASET TARGET --split validation

Says how many questions were read, written and set aside.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("convert_data")
