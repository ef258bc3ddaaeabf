"""The text of a config file of one's own, from what is known of data, model and machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynarag_jax.files import output_stem


@dataclass(frozen=True)
class Data:
    """What question files and a corpus hold.

    Attributes:
      train, evaluation: question files.
      corpus: its files; empty where the questions bring their candidates.
      count: training questions.
      evaluated: questions of the evaluation.
      candidates: of a question, found or given.
      label: what their expert lists are made of; "scores" needs a model that scores passages.
      answered: whether questions have answers, so that there is a reward.
      paragraphs: whether the answers are paragraphs.
      encoder: the embedding model.
      notes: what was looked at, a line each.
    """

    train: str
    evaluation: str
    corpus: tuple[str, ...]
    count: int
    evaluated: int
    candidates: int
    label: Literal["gold", "answer", "scores"]
    answered: bool
    paragraphs: bool
    encoder: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """The prompts' limits, in tokens where nothing else is said."""

    ids: int
    max_list: int
    rerank_tokens: int
    answer_prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Layout:
    """How training is laid out on the machine."""

    where: str
    lora: bool
    batch: int
    accumulate: int = 1
    remat: str = "none"
    mesh: str = "Mesh()"
    accelerated: bool = True
    several_hosts: bool = False


@dataclass(frozen=True)
class Pace:
    """How much a first run does.

    Attributes:
      candidates: of a question, where a corpus is searched for them.
      batch: rows of a training step.
      steps: of behavior cloning; feedback takes half of them.
      limit: questions that lists are sampled for.
      samples: lists of each.
      evaluated: questions that are evaluated.
      examples: of them shown in full in the report.
    """

    candidates: int = 10
    batch: int = 4
    steps: int = 20
    limit: int = 64
    samples: int = 4
    evaluated: int = 40
    examples: int = 10


SCORER = "castorini/monot5-base-msmarco-10k"
"""A model that scores passages, from the hub."""


def config_text(
    name: str, model: str, data: Data, lengths: Lengths, layout: Layout, pace: Pace | None
) -> str:
    """A config file.

    Args:
      name: of the file, without its ending.
      pace: of a first run; None takes all questions.
    """
    names = ["Export", "Label", "Sft", "Stream"]
    names += ["Retrieve"] if data.corpus else []
    answered = ["Evaluate", "Feedback", "Report", "SampleRollouts"]
    names += answered if data.answered else ["Rerank"]
    imports = [
        "from dynarag_jax.config import Mesh, Run",
        "from dynarag_jax.models.decoder import DecoderConfig",
        *(["from dynarag_jax.models.lora import LoraConfig"] if layout.lora else []),
        *(["from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll"]
          if data.answered else []),
        "from dynarag_jax.prompts import PromptConfig",
        *(["from dynarag_jax.retrieval.corpora import CorpusConfig"] if data.corpus else []),
        *(["from dynarag_jax.rewards.combine import RewardWeights"] if data.answered else []),
        "from dynarag_jax.stages import (",
        *(f"    {stage}," for stage in sorted(names)),
        ")",
        "from dynarag_jax.training.optimizer import OptimizerConfig",
    ]  # fmt: skip
    parts = [
        _head(name, model, data, layout, pace),
        "\n".join(imports),
        _shared(name, data, lengths, layout, pace),
        "stages = {\n" + "".join(_stages(model, data, layout, pace)) + "}",
    ]
    return "\n\n".join(parts) + "\n"


def _head(name: str, model: str, data: Data, layout: Layout, pace: Pace | None) -> str:
    lines = [
        f'"""{model} as a reranker over {", ".join(data.corpus) or "given candidates"}.',
        "",
        f"    dynarag check {name}.py",
        f"    dynarag run {name}.py",
        "",
        "Written by `dynarag new`, for you to change; run it from the folder it was written in.",
        *data.notes,
        f"Sized for {layout.where}.",
    ]
    if layout.several_hosts:
        lines += [
            "On several hosts each runs the stages; label, evaluate and rerank run on one alone",
            "(docs/running-on-pods.md).",
        ]
    if pace:
        lines.append("A first run in small: few questions, steps and samples.")
    return "\n".join(lines) + '\n"""'


def _shared(name: str, data: Data, p: Lengths, layout: Layout, pace: Pace | None) -> str:
    sampled = "bfloat16" if layout.accelerated else "float32"
    stored = "bfloat16" if layout.lora and layout.accelerated else "float32"
    lines = [
        "# The same in every stage. Passages that do not fit are dropped from the end and counted.",
        "prompts = PromptConfig(",
        f"    ids={p.ids},  # candidates shown to the reranker",
        f"    max_list={p.max_list},  # passages in its list at most",
        f"    rerank_tokens={p.rerank_tokens},  # nearly all prompts of so many passages fit",
        f"    answer_prompt_tokens={p.answer_prompt_tokens},",
        f"    answer_tokens={p.answer_tokens},  # the longest reference answers fit",
        ")",
        "",
        "run = Run(",
        f'    directory="runs/{name}",',
        "    seed=0,",
        *([] if "fsdp" not in layout.mesh else ["    # All devices share weights and moments."]),
        f"    mesh={layout.mesh},",
        "    prompts=prompts,",
        f'    dtype="{sampled}",',
        ")",
        "",
        "# Only types and memory are taken from here; the shape is the checkpoint's.",
        f'numerics = DecoderConfig(dtype="{sampled}", param_dtype="{stored}", '
        f'remat="{layout.remat}")',
    ]
    if layout.lora:
        lines.append("lora = LoraConfig(rank=16)  # all weights trained would not fit")
    if data.answered and data.paragraphs:
        lines += [
            "# Answers are paragraphs: ROUGE-L, less a price a passage.",
            "reward = RewardWeights(em=0.0, rouge_l=1.0, passages=0.0, price=0.01)",
        ]
    elif data.answered:
        lines += [
            "# 1 for a right answer, and up to 0.25 more for having read few passages.",
            *(
                ["# A model is seldom right at first: how likely it finds the answer counts, too."]
                if pace
                else []
            ),
            f"reward = RewardWeights(em=1.0, passages=0.25{', likelihood=0.5' if pace else ''})",
        ]
    return "\n".join(lines)


def _stages(model: str, data: Data, layout: Layout, pace: Pace | None) -> list[str]:
    """The stages, each as a piece of text."""
    found = "{run}/retrieve/%s" if data.corpus else ""
    train, evaluation = (
        found % _base(path) if found else path for path in (data.train, data.evaluation)
    )
    labeled = f"{{run}}/label/{_base(data.train)}"
    final = "{run}/feedback/model" if data.answered else "{run}/sft/model"
    # The first rates to try: adapters bear, and need, more than whole weights.
    first, second = (1e-4, 2e-5) if layout.lora else (1e-5, 5e-6)
    batch, rows = layout.batch, 8 * (2 if layout.accelerated else 1)
    shared = [
        "        model=numerics,\n",
        "        lora=lora,\n" if layout.lora else "",
        f"        accumulate={layout.accumulate},\n",
        "        lengths=2,  # that prompts are padded to: each is compiled\n" if pace else "",
    ]
    generator = f"Stream(batch={batch})" if data.answered else "Stream(batch=0)  # no answers"
    pieces = []
    if data.corpus:
        pieces.append(
            '    "retrieve": Retrieve(\n'
            f"        corpus=CorpusConfig(files={_tuple(data.corpus)}),\n"
            f"        questions={_tuple((data.train, data.evaluation))},\n"
            f"        encoder={_text(data.encoder)},\n"
            f"        passages={data.candidates},\n"
            "        evaluate=True,  # recall, where needed passages or answers are known\n"
            "    ),\n"
        )
    by_scores = f'# or source="scores", scorer="{SCORER}", as the paper does'
    scored = f', scorer="{SCORER}"' if data.label == "scores" else ""
    pieces.append(
        f"    # {_LABELS[data.label]}\n"
        + (f"    {by_scores}\n" if data.label != "scores" else "")
        + f'    "label": Label(questions=({_text(train)},), source="{data.label}"{scored}),\n'
    )
    pieces += [
        '    "sft": Sft(\n',
        f"        init={_text(model)},\n",
        f"        questions={_text(labeled)},\n",
        f"        reranker=Stream(batch={batch}),\n",
        f"        generator={generator.replace(')', '),', 1)}\n",
        *shared,
        f"        optimizer={_optimizer(first)},\n",
        f"        steps={pace.steps},\n" if pace else
        f"        epochs=1.0,  # {-(-data.count // batch)} steps\n",
        "    ),\n",
    ]  # fmt: skip
    if data.answered:
        limit = f"        limit={pace.limit},\n" if pace else ""
        pieces += [
            '    "rollout": SampleRollouts(\n',
            f"        questions={_text(labeled)},\n",
            limit,
            f"        samples={pace.samples if pace else 8},\n",
            "        reward=reward,\n",
            f"        batch={rows},\n",
            "    ),\n",
            '    "feedback": Feedback(\n',
            '        init="{run}/sft/model",\n',
            f"        questions={_text(labeled)},\n",
            "        reranker=Stream(\n",
            f"            batch={batch},\n",
            "            objectives=Objectives(\n",
            "                nll=TokenNll(weight=0.0),"
            " dpo=Dpo(weight=1.0, beta=0.1, chosen_nll=0.1)\n",
            "            ),\n",
            "        ),\n",
            f"        generator=Stream(batch={batch}),\n",
            *shared,
            f"        optimizer={_optimizer(second)},\n",
            f"        steps={pace.steps // 2},\n" if pace else "        epochs=1.0,\n",
            "    ),\n",
            '    "evaluate": Evaluate(\n',
            "        models={\n",
            '            "behavior cloning": "{run}/sft/model",\n',
            '            "after feedback": "{run}/feedback/model",\n',
            "        },\n",
            f"        questions={_text(evaluation)},\n",
            f"        top_k={_ints(top_ks(data.candidates))},\n",
            f"        examples={pace.examples},\n" if pace else "",
            f"        samples={pace.samples},\n" if pace else "",
            "        reward=reward,\n",
            f"        batch={rows},\n",
            "    ),\n",
        ]
    else:
        pieces.append(
            f'    "rerank": Rerank(model="{final}", questions=({_text(evaluation)},), '
            f"batch={rows}),\n"
        )
    pieces.append(f'    "export": Export(model="{final}", dtype="bfloat16"),\n')
    if data.answered:
        pieces.append(f'    "report": Report(title={_text(f"{model}, reranker and generator")}),\n')
    return pieces


def top_ks(candidates: int) -> list[int]:
    """The fixed cuts of the retriever's order that are evaluated."""
    return [k for k in (1, 3, 5, 10) if k <= candidates]


_LABELS = {
    "gold": "The expert's lists are the needed passages that the questions mark.",
    "answer": "The expert's lists are the passages that contain an answer.",
    "scores": "The questions mark no passages and have no answers: a model scores passages.",
}


def _optimizer(rate: float) -> str:
    return f"OptimizerConfig(learning_rate={rate:g})"


def _base(path: str) -> str:
    """The name under which a stage writes what it made of a question file."""
    return f"{output_stem(path)}.jsonl"


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tuple(values: tuple[str, ...]) -> str:
    return "(" + ", ".join(map(_text, values)) + ("," if len(values) == 1 else "") + ")"


def _ints(values) -> str:
    written = [str(value) for value in values]
    return "(" + ", ".join(written) + ("," if len(written) == 1 else "") + ")"
