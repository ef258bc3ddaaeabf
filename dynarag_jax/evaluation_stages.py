"""The stages of evaluation as configuration: answers, scores, comparisons, whole benchmarks.

Beside ``stages``, which has those of training and the quickstart's evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.evaluation.scoring import CUTOFFS, check_dataset
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.engine import EngineConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows

Protocol = Literal["benchmark", "released-code"]
Baseline = Literal["none", "top-k", "static", "oracle"]


def _check_k(where: str, name: str, values: tuple[int, ...]) -> None:
    if bad := [k for k in values if k < 1]:
        raise InputError(f"{where}: {name} = {bad[0]} must be at least 1")


@dataclass(frozen=True)
class Answer:
    """Answer questions from given lists of passages: one line of predictions a question."""

    model: str = "{run}/dpo/model"
    """the generator"""
    questions: tuple[str, ...] = ("{run}/rerank/evaluation.jsonl",)
    """question files; the predictions of each are written under its own name"""
    lists: Literal["given", "none", "top-k", "static", "oracle"] = "given"
    """given: the questions' own field ``list``, as eval.rerank writes it; none: no passages; top-k:
    the retriever's first ``k``; static: the first ``k`` by ``scorer``; oracle: those needed"""
    k: int = 10
    """passages of the lists top-k and static"""
    scorer: str = ""
    """MonoT5 or cross-encoder with one logit, of the lists static: a directory or hub id"""
    system: str = ""
    """what the predictions are called; empty names them after their lists"""
    prompts: PromptConfig = PromptConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the models' weights and activations"""
    batch: int = 64
    """prompts at once"""
    engine: EngineConfig = EngineConfig()

    def __post_init__(self) -> None:
        _check_k("answer", "k", (self.k,))
        if (self.lists == "static") != bool(self.scorer):
            raise InputError(
                f"answer: lists = '{self.lists}' and scorer = '{self.scorer}': static lists need a "
                f"scorer, and no others take one"
            )


@dataclass(frozen=True)
class Score:
    """Score files of predictions: every metric of the benchmarks, with intervals."""

    questions: tuple[str, ...] = ()
    """question files; every one of their questions counts"""
    predictions: tuple[str, ...] = ()
    """files of predictions, {id, answer} a line and more (see dynarag_jax/evaluation/predictions):
    FILE, or NAME=FILE to say what the system is called"""
    dataset: str = ""
    """benchmark of the questions that do not say theirs: nq, triviaqa, hotpotqa, ...; without one,
    the form of the answers decides"""
    protocol: Protocol = "benchmark"
    """benchmark: as the benchmarks' authors score; released-code: as the released DynamicRAG
    scripts do, mistakes and all, for comparison with their numbers"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        _check_k("score", "cutoffs", self.cutoffs)


@dataclass(frozen=True)
class Compare:
    """Compare systems on the same questions: paired differences, intervals, p-values."""

    questions: tuple[str, ...] = ()
    """question files; every one of their questions counts"""
    predictions: tuple[str, ...] = ()
    """files of predictions, FILE or NAME=FILE; one may hold several systems"""
    baseline: str = ""
    """the system that the others are compared with; empty takes the first"""
    every: bool = False
    """compare all pairs of systems instead"""
    dataset: str = ""
    """benchmark of the questions that do not say theirs"""
    protocol: Protocol = "benchmark"
    """as of eval.score"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        _check_k("compare", "cutoffs", self.cutoffs)


@dataclass(frozen=True)
class Bench:
    """All benchmarks in one run: models and baselines, the paper's row beside them."""

    datasets: dict[str, str] = field(default_factory=dict)
    """benchmark (nq, triviaqa, hotpotqa, 2wikimultihopqa, asqa, fever, eli5, popqa, musique, squad)
    -> file of its questions with their candidates"""
    only: tuple[str, ...] = ()
    """those of ``datasets`` to take; empty takes all"""
    models: dict[str, str] = field(default_factory=lambda: {"DynamicRAG": "{run}/dpo/model"})
    """name -> model directory; each reranks and answers, the last one answers for the baselines"""
    baselines: tuple[Baseline, ...] = ("none", "top-k", "static", "oracle")
    """no retrieval; the retriever's first; a static reranker's first, where there is a ``scorer``;
    the needed passages, where the questions say which they are"""
    top_k: tuple[int, ...] = (10,)
    """where the retriever's and the static reranker's orders are cut"""
    scorer: str = ""
    """the static reranker: a MonoT5 or a cross-encoder with one logit"""
    retriever: str = ""
    """what retrieved the candidates, and from which corpus, for the record"""
    limit: int = 0
    """questions of a dataset, the first of its file; 0 takes all"""
    prompts: PromptConfig = PromptConfig()
    answer_tokens: dict[str, int] = field(default_factory=lambda: {"asqa": 256, "eli5": 256})
    """dataset -> longest answer, in place of ``prompts.answer_tokens``"""
    sampling: Sampling = Sampling(temperature=0.2)
    """how lists are written; the default is the paper's. Answers are greedy"""
    windows: Windows = Windows(window=0, budget=0)
    """for questions with more candidates than ``prompts.ids``"""
    protocol: Protocol = "benchmark"
    """as of eval.score"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the models' weights and activations"""
    batch: int = 64
    """prompts at once"""
    engine: EngineConfig = EngineConfig()

    def chosen(self) -> dict[str, str]:
        """The datasets to run."""
        return {n: path for n, path in self.datasets.items() if not self.only or n in self.only}

    def __post_init__(self) -> None:
        for name in self.datasets:
            check_dataset(name)
        for name in self.only:
            if name not in self.datasets:
                known = ", ".join(self.datasets) or "none"
                hint = nearest(name, self.datasets)
                raise InputError(f"bench: only = '{name}' is none of the datasets: {known}{hint}")
        for name, tokens in self.answer_tokens.items():
            check_dataset(name)
            _check_k("bench", f"answer_tokens.{name}", (tokens,))
        _check_k("bench", "top_k", self.top_k)
        _check_k("bench", "cutoffs", self.cutoffs)
        if self.limit < 0:
            raise InputError(f"bench: limit = {self.limit} must not be negative")
