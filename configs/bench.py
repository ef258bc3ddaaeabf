"""Every benchmark with a trained checkpoint, beside the baselines and the paper's table.

    python -m eval.bench configs/bench.py --models.DynamicRAG /models/dynarag-8b \
        --scorer castorini/monot5-base-msmarco-10k
    python -m eval.bench configs/bench.py --only nq --datasets.nq nq.jsonl --limit 500

Each dataset is a file of questions with their candidates, best first (45 of them for the paper's
setting): train.prepare makes the questions, train.retrieve fills them. Stages of their own make
lists, answers and scores of one file by steps:

    python -m eval.rerank  configs/bench.py --questions questions/nq.jsonl
    python -m eval.answer  configs/bench.py
    python -m eval.score   configs/bench.py

For an 8B model in bfloat16 one accelerator of 80 GB is enough; more share the work by the mesh. Not
measured by us on such hardware.
"""

from dynarag_jax.config import Run
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import Answer, Bench, Rerank, Score

prompts = PromptConfig(style="instruct", ids=45, max_list=15, answer_tokens=50)

run = Run(directory="runs/bench", seed=0, prompts=prompts, dtype="bfloat16")

MODEL = "checkpoint"
sampling = Sampling(temperature=0.2)
nq = ("questions/nq.jsonl",)

stages = {
    "bench": Bench(
        datasets={
            "nq": "questions/nq.jsonl",
            "triviaqa": "questions/triviaqa.jsonl",
            "hotpotqa": "questions/hotpotqa.jsonl",
            "2wikimultihopqa": "questions/2wikimultihopqa.jsonl",
            "asqa": "questions/asqa.jsonl",
            "fever": "questions/fever.jsonl",
            "eli5": "questions/eli5.jsonl",
        },
        models={"DynamicRAG": MODEL},
        top_k=(5, 10),
        retriever="",  # say here what retrieved the candidates; the table names it
        sampling=sampling,
        batch=16,
    ),
    "rerank": Rerank(model=MODEL, questions=nq, sampling=sampling, batch=16),
    "answer": Answer(
        model=MODEL,
        questions=("{run}/rerank/nq.jsonl",),
        system="DynamicRAG",
        batch=16,
    ),
    "score": Score(questions=nq, predictions=("{run}/answer/nq.jsonl",), dataset="nq"),
}
