"""What stages read and what they make, by their classes and fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dynarag_jax.evaluation.predictions import split_name
from dynarag_jax.files import output_stem
from dynarag_jax.launch.checks.finding import kinds

Kind = Literal["file", "corpus", "model", "encoder", "tokenizer"]


@dataclass(frozen=True)
class Need:
    """Something that a stage reads: what kind of thing, by which field, where."""

    kind: Kind
    field: str
    text: str


_FILES = ("questions", "instruction_file", "rollouts", "remove", "predictions", "embedded")
_MODELS = ("init", "adapters", "model", "models", "policy", "reference", "reader", "begin")


def needs(stage: Any) -> list[Need]:
    """What a stage of this library reads, as it is configured."""
    needed = [Need("file", f, t) for f in _FILES for t in _texts(getattr(stage, f, ""))]
    if kinds(stage) & {"Score", "Compare"}:
        needed = [Need(n.kind, n.field, str(split_name(n.text)[1])) for n in needed]
    if "Export" in kinds(stage) and stage.checkpoint:
        return []
    for name in _MODELS:
        # Of a training stage, ``model`` is a shape, and ``policy`` a kind.
        if name == "policy" and "Train" in kinds(stage):
            continue
        needed += [Need("model", name, t) for t in _texts(getattr(stage, name, "")) if t]
    needed += [Need("tokenizer", "tokenizer", t) for t in _texts(getattr(stage, "tokenizer", ""))]
    return [need for need in [*needed, *_special(stage)] if need.text or need.field == "source"]


def _texts(value: Any) -> list[str]:
    """The paths of a field: a text, several, or the values of a mapping."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [v for v in value.values() if isinstance(v, str)]
    return [v for v in value if isinstance(v, str)] if isinstance(value, tuple) else []


def _special(stage: Any) -> Iterator[Need]:
    """What is read under a condition."""
    kind = kinds(stage)
    corpus = getattr(stage, "corpus", None)
    if isinstance(corpus, str):
        yield Need("file", "corpus", corpus)
    elif corpus is not None and not getattr(stage, "embedded", ""):
        yield from (Need("corpus", "corpus.files", text) for text in corpus.files)
    if "Retrieve" in kind:
        for name in ("runs", "judgments"):
            used = stage.source == "run" if name == "runs" else stage.evaluate
            if used:
                yield from (Need("file", name, text) for text in getattr(stage, name).values())
        if stage.indexed:
            yield Need("file", "indexed", stage.indexed)
        if stage.source in ("dense", "hybrid"):
            yield Need("encoder", "encoder", stage.encoder)
    elif "BuildIndex" in kind:
        if stage.queries:
            yield Need("file", "queries", stage.queries)
            yield Need("encoder", "encoder", stage.encoder)
    elif "Embed" in kind or "Update" in kind:
        yield Need("encoder", "encoder", stage.encoder)
    if "Update" in kind:
        yield Need("file", "indexed", stage.indexed)
        yield from (Need("corpus", "add", text) for text in stage.add)
    if "Gather" in kind:
        yield Need("file", "source", stage.source)
    if "Sft" in kind:
        yield from (Need("file", "mixture", text) for text in stage.mixture)
    if "Bench" in kind:
        yield from (Need("file", f"datasets.{n}", text) for n, text in stage.chosen().items())
        if stage.scorer and "static" in stage.baselines:
            yield Need("model", "scorer", stage.scorer)
    if "Evaluate" in kind and stage.scorer:
        yield Need("model", "scorer", stage.scorer)
    if "Mix" in kind:
        for name in ("train", "held_out"):
            files = getattr(stage, name).items()
            yield from (Need("file", f"{name}.{which}", text) for which, text in files)
    if "Label" in kind and stage.source == "scores":
        yield Need("model", "scorer", stage.scorer)
    if "Answer" in kind and stage.lists == "static":
        yield Need("model", "scorer", stage.scorer)
    if "SampleRollouts" in kind and stage.reward.bertscore:
        yield Need("encoder", "bertscore.encoder", stage.bertscore.encoder)
    rules = getattr(stage, "rules", None)
    if rules is not None and rules.names:
        datasets: Iterable[str] = stage.chosen() if "Bench" in kind else ("",)
        for name in datasets:
            yield Need("file", "rules.tuning", rules.tuning.replace("{dataset}", name))


def makes(stage: Any) -> set[str] | None:
    """What will lie in a stage's directory, by name; None where that is not known here."""
    kind = kinds(stage)
    if "Train" in kind:
        return {
            "model",
            "checkpoints",
            *(["adapters"] if stage.lora.rank or stage.adapters else []),
        }
    if kind & {"Label", "CollectReasons", "Rerank", "Answer"}:
        return {f"{output_stem(text)}.jsonl" for text in stage.questions}
    if "Retrieve" in kind:
        stems = [output_stem(text) for text in stage.questions]
        return {f"{stem}{ending}" for stem in stems for ending in (".jsonl", ".trec")}
    if "Facts" in kind:
        lessons = ["lessons.jsonl"] if stage.lessons.questions else []
        lessons += ["near_lessons.jsonl"] if stage.lessons.near else []
        return {"corpus.jsonl", "train.jsonl", "evaluation.jsonl", "tokenizer", *lessons}
    fixed = {
        "Gather": {"corpus.jsonl", "train.jsonl", "evaluation.jsonl"},
        "Mix": {"train.jsonl", "development.jsonl", "evaluation.jsonl"},
        "TrainTokenizer": {"tokenizer"},
        "SampleRollouts": {"rollouts.jsonl", "rejects.jsonl"},
        "Reference": {"rollouts.jsonl"},
        "Contrast": {"rollouts.jsonl"},
        "Export": {"model", "adapters"},
        "Calibrate": {"model"},
        "Rounds": {"model"},
    }
    return next((made for name, made in fixed.items() if name in kind), None)
