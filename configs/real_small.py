"""configs/real.py on few questions: five short candidates, a cloned policy in an hour on two cores.

    dynarag run configs/real_small.py                   # where ../shared/data is there

The weights and the cross-encoder are those of configs/real.py. The best five candidates are shown,
in prompts of 1,024 tokens; the reader and the reranker see hundreds of examples where that config's
see thousands, and 50 held-out questions of each set are evaluated on. docs/benchmarks.md says what
came of it up to ``sft``; feedback and the evaluation of 300 questions take hours more.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.stages import Contexts

real = base_config(__file__, "real.py")
before = real.stages
prompts = replace(real.run.prompts, ids=5, max_list=5, rerank_tokens=1024, answer_prompt_tokens=768)
run = replace(real.run, directory="runs/real_small", prompts=prompts)

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    "mix": replace(
        before["mix"],
        limits={
            "hotpotqa": 500,
            "nq": 400,
            "nq_retrieved": 100,
            "popqa": 100,
            "nothing_helps": 150,
        },
        evaluated={"popqa": 50, "nothing_helps": 50},
        held_out_limit=50,
    ),
    "label": replace(before["label"], limit=prompts.max_list),
    "reader": replace(
        before["reader"],
        generator=replace(before["reader"].generator, batch=8),
        contexts=Contexts(gold=0.5, padded=0.4, random=0.1),
        steps=64,
        checkpoint_every=32,
    ),
    "sft": replace(
        before["sft"],
        reranker=replace(before["sft"].reranker, batch=8),
        generator=replace(before["sft"].generator, batch=4),
        steps=40,
        checkpoint_every=20,
    ),
    "rollout": replace(before["rollout"], limit=240, batch=16),
    "feedback": replace(
        before["feedback"],
        reranker=replace(before["feedback"].reranker, batch=8),
        generator=replace(before["feedback"].generator, batch=2),
        checkpoint_every=25,
    ),
    "evaluate": replace(before["evaluate"], top_k=(1, 2, 3, 5)),
    "export": before["export"],
    "report": before["report"],
}
