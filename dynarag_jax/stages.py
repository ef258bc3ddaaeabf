"""The stages of a run as configuration: one frozen dataclass a program, a help line a field.

``{run}`` in a path stands for the run directory, so that stages find each other's files wherever
the run lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.facts.world import WorldConfig
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import Dpo as DpoTerm
from dynarag_jax.objectives.terms import Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig, Style
from dynarag_jax.retrieval.stages import BuildIndex, Embed, Label, Retrieve, Update
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import JudgeConfig
from dynarag_jax.rewards.scorer import BertScoreConfig
from dynarag_jax.sampling.engine import EngineConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.server import ServerConfig
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.training.optimizer import OptimizerConfig

__all__ = [
    "BuildIndex",
    "Contexts",
    "Dpo",
    "Embed",
    "Evaluate",
    "Export",
    "Facts",
    "Gather",
    "Label",
    "Pairs",
    "Reference",
    "Report",
    "Rerank",
    "Retrieve",
    "Rollout",
    "Sft",
    "Stream",
    "Tokenizer",
    "Train",
    "Update",
]


@dataclass(frozen=True)
class Facts:
    """Generate the facts world: a corpus, questions and a word-level tokenizer."""

    world: WorldConfig = WorldConfig()
    prompts: PromptConfig = PromptConfig()


@dataclass(frozen=True)
class Gather:
    """Make a corpus and a question file from questions that come with their passages.

    Reads any format of docs/data.md whose questions come with passages: that of Self-RAG, DPR and
    Lost-in-the-Middle, HotpotQA's and others.
    """

    source: str = ""
    """the file to read"""
    format: str = ""
    """its format; empty finds it by the first records"""
    evaluation: float = 0.3
    """share of the questions kept for evaluation, chosen by the run's seed"""


@dataclass(frozen=True)
class Tokenizer:
    """Train a byte-level BPE tokenizer on a corpus and its questions."""

    corpus: str = "{run}/gather/corpus.jsonl"
    questions: tuple[str, ...] = ("{run}/gather/train.jsonl",)
    vocabulary: int = 4096
    """tokens in all"""


@dataclass(frozen=True)
class Contexts:
    """Which passages the generator reads in training, as shares; the rest are the expert's."""

    gold: float = 0.0
    """the needed passages"""
    padded: float = 0.0
    """the needed passages and up to ``extras`` others: as given, or shuffled, half the time each"""
    extras: int = 3
    """passages added to ``padded`` contexts at most"""
    random: float = 0.0
    """a random number of the candidates, shuffled: it must learn to read past the others"""


@dataclass(frozen=True)
class Stream:
    """One kind of examples in the training mixture."""

    batch: int = 16
    """examples a step, over all devices; 0 leaves the stream out"""
    weight: float = 1.0
    """factor of this stream's loss"""
    length: int = 0
    """padded prompt length; 0 is the prompt's own limit. What is longer loses passages"""
    objectives: Objectives = Objectives()


@dataclass(frozen=True)
class Train:
    """What every training stage shares."""

    init: str = ""
    """model directory to start from; empty starts at random with ``model``"""
    tokenizer: str = ""
    """tokenizer directory; empty takes the model directory's"""
    questions: str = "{run}/label/train.jsonl"
    """questions with passages, answers and expert lists"""
    prompts: PromptConfig = PromptConfig()
    model: DecoderConfig = DecoderConfig()
    """shape of a new model; with ``init``, only types, remat, attention and unroll count"""
    lora: LoraConfig = LoraConfig(rank=0)
    """with a rank above 0, train low-rank adapters beside the frozen weights of ``init``"""
    adapters: str = ""
    """PEFT adapters to go on training; rank, alpha and targets are then theirs"""
    reranker: Stream = Stream()
    """lists"""
    generator: Stream = Stream()
    """answers"""
    contexts: Contexts = Contexts()
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: float = 1.0
    """passes over the reranker's examples"""
    steps: int = 0
    """updates; 0 takes as many as ``epochs`` needs"""
    accumulate: int = 1
    """microbatches an update"""
    checkpoint_every: int = 200
    """steps between checkpoints; 0 saves at the end only"""
    keep: int = 2
    """latest checkpoints kept"""
    best: str = ""
    """figure by which the best checkpoints are kept beside the latest, such as 'loss': its mean
    over the steps since the checkpoint before; empty keeps none as the best"""
    best_is: Literal["lowest", "highest"] = "lowest"
    keep_best: int = 1
    """best checkpoints kept"""
    final: Literal["last", "best"] = "last"
    """which checkpoint becomes the stage's model"""
    log_every: int = 10
    """steps between lines of metrics"""
    lengths: int = 4
    """padded prompt lengths of a stream, chosen from its data; each is compiled once, and one more
    where something exceeds them. 1 pads every prompt to the limit and sorts nothing by length"""
    nonfinite: Literal["stop", "skip"] = "stop"
    """where loss or gradient are not finite: stop the run, or leave that update out"""
    profile: tuple[int, int] = (0, 0)
    """first and last step of a profiler trace, written to the stage's directory; 0 0 is none"""

    def __post_init__(self) -> None:
        for name in ("keep", "keep_best", "log_every", "lengths", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.final == "best" and not self.best:
            raise InputError("final 'best' needs a figure to be best by: set 'best', say to 'loss'")
        first, last = self.profile
        if (first, last) != (0, 0) and not 1 <= first <= last:
            raise InputError(f"profile = {first} {last}: steps count from 1, the first one first")


@dataclass(frozen=True)
class Sft(Train):
    """Behavior cloning of the expert's lists and generator SFT, jointly in every step."""

    mixture: dict[str, float] = field(default_factory=dict)
    """further question files -> how many of their examples are drawn for one of ``questions``"""
    shuffled: float = 0.0
    """share of the lists learned over candidates in random order, so that the reranker reads them
    and does not trust the retriever's ranks alone (as RankVicuna, arXiv 2309.15088)"""
    instructions: Stream = Stream(batch=0)
    """instruction data, mixed in by the ratio of the streams' batches; batch 0 leaves it out"""
    instruction_file: str = ""
    """JSONL of {instruction, input, output} or {messages}"""
    instruction_tokens: int = 512
    """longest reply, end of text included; longer ones are left out and counted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shuffled <= 1:
            raise InputError(f"shuffled = {self.shuffled} must be a share from 0 to 1")
        if bool(self.instructions.batch) != bool(self.instruction_file):
            raise InputError(
                f"instruction_file = '{self.instruction_file}' and instructions.batch = "
                f"{self.instructions.batch}: instruction data needs both, or neither"
            )
        if self.instruction_tokens < 1:
            raise InputError(f"instruction_tokens = {self.instruction_tokens} must be positive")


@dataclass(frozen=True)
class Dpo(Train):
    """Feedback: preference or group objectives on the sampled lists, generator SFT beside them.

    Pairwise objectives take each question's best and worst list; where listwise preference or a
    group objective carries weight, all of its lists are trained on.
    """

    rollouts: str = "{run}/rollout/rollouts.jsonl"
    """sampled lists with rewards and reference log-probabilities"""
    reference: str = ""
    """model that the reference log-probabilities must come from; empty is ``init``"""
    min_gap: float = 0.0
    """the best reward must exceed the worst by more than this"""
    reranker: Stream = field(
        default_factory=lambda: Stream(
            objectives=Objectives(nll=TokenNll(weight=0.0), dpo=DpoTerm(weight=1.0))
        )
    )
    """lists"""
    answers: Stream = field(
        default_factory=lambda: Stream(
            batch=0, objectives=Objectives(nll=TokenNll(weight=0.0), dpo=DpoTerm(weight=1.0))
        )
    )
    """answers preferred to others, given the same passages; needs rollouts made with ``answers``"""


@dataclass(frozen=True)
class Rollout:
    """Sample lists, answer from each, reward the answers."""

    model: str = "{run}/sft/model"
    """the policy: it writes the lists and the answers"""
    reference: str = ""
    """model behind the reference log-probabilities; empty is the policy itself"""
    questions: str = "{run}/label/train.jsonl"
    limit: int = 0
    """questions to take, chosen by the seed; 0 takes all"""
    samples: int = 8
    """lists a question"""
    more_passages: Literal["set_aside", "show_first"] = "set_aside"
    """what becomes of a question with more passages than ``prompts.ids``: into rejects.jsonl, or
    sampled from its first ``prompts.ids``"""
    answers: bool = False
    """also score the distinct answers, all from the best list's passages: what preference training
    of the generator needs"""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9)
    reward: RewardWeights = RewardWeights()
    bertscore: BertScoreConfig = BertScoreConfig()
    judge: JudgeConfig = JudgeConfig()
    prompts: PromptConfig = PromptConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 64
    """prompts sampled at once"""
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    """another source of the lists; answers and log-probabilities come from here all the same"""


@dataclass(frozen=True)
class Pairs:
    """Write preference pairs of rollouts as text, for training with other tools."""

    rollouts: str = "{run}/rollout/rollouts.jsonl"
    questions: str = "{run}/label/train.jsonl"
    """the questions that were sampled from"""
    which: Literal["best_worst", "all"] = "best_worst"
    """each question's best against its worst, or every two that differ enough"""
    min_gap: float = 0.0
    """the better reward must exceed the worse by more than this"""
    form: Literal["preference", "llama-factory"] = "preference"
    """Hugging Face's {prompt, chosen, rejected} in messages, or LLaMA-Factory's alpaca fields"""
    style: Style = "instruct"
    """of the prompts, as the rollouts' ``prompts.style``"""


@dataclass(frozen=True)
class Reference:
    """Compute the log-probabilities of rollouts anew: under another reference, or from elsewhere.

    Reads lists, answers and rewards, and writes them with log-probabilities by token and the
    fingerprints of the weights, the tokenizer and the prompts behind them.
    """

    model: str = "{run}/sft/model"
    """the reference"""
    policy: str = ""
    """the model that sampled the lists, where its log-probabilities are wanted, too"""
    rollouts: str = "{run}/rollout/rollouts.jsonl"
    questions: str = "{run}/label/train.jsonl"
    """the questions that were sampled from"""
    answers: bool = False
    """also score the distinct answers, all from the best list's passages"""
    reward: RewardWeights = RewardWeights()
    """with ``answers``: what ranks them, from the terms on record"""
    prompts: PromptConfig = PromptConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 64
    """prompts scored at once"""


@dataclass(frozen=True)
class Evaluate:
    """Score models on questions beside fixed top-k, no retrieval and oracle passages."""

    models: dict[str, str] = field(default_factory=lambda: {"behavior cloning": "{run}/sft/model"})
    """name -> model directory; the last one also answers for the baselines"""
    questions: str = "{run}/label/evaluation.jsonl"
    prompts: PromptConfig = PromptConfig()
    sampling: Sampling = Sampling(temperature=0.0)
    """how lists are written; answers are greedy"""
    top_k: tuple[int, ...] = (1, 2, 3, 5, 10)
    """fixed cuts of the retriever's order to compare with"""
    shuffled: bool = False
    """also show every model the candidates in random order: what it knows without the retriever's
    order"""
    examples: int = 10
    """questions shown in full in the report, with lists sampled from the first model"""
    samples: int = 8
    """lists sampled for each of them"""
    examples_sampling: Sampling = Sampling(temperature=1.0)
    reward: RewardWeights = RewardWeights()
    """of the lists sampled for the examples"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 64
    """prompts sampled at once"""
    engine: EngineConfig = EngineConfig()


@dataclass(frozen=True)
class Rerank:
    """Write a model's list for every question; candidates beyond one prompt by windows."""

    model: str = "{run}/dpo/model"
    questions: tuple[str, ...] = ("{run}/retrieve/evaluation.jsonl",)
    """question files; each is written under its own name, with the lists"""
    prompts: PromptConfig = PromptConfig()
    sampling: Sampling = Sampling(temperature=0.0)
    """how lists are written; method 'beam' takes the most probable list it finds"""
    windows: Windows = Windows(window=0, budget=0)
    """for questions with more candidates than ``prompts.ids``"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 64
    """prompts at once"""
    engine: EngineConfig = EngineConfig()

    def __post_init__(self) -> None:
        if self.windows.window > self.prompts.ids:
            raise InputError(
                f"windows: window = {self.windows.window} shows more passages than a prompt's "
                f"ids = {self.prompts.ids}"
            )
        if self.windows.budget > self.prompts.max_list:
            raise InputError(
                f"windows: budget = {self.windows.budget} is more than a list holds, max_list = "
                f"{self.prompts.max_list}"
            )
        if self.prompts.ids > 1:
            self.windows.within(self.prompts.ids, self.prompts.max_list)


@dataclass(frozen=True)
class Export:
    """Write the trained model as a directory that transformers and vLLM load."""

    model: str = "{run}/dpo/model"
    """a model directory or hub id"""
    checkpoint: str = ""
    """a training stage of this configuration, finished or not: export what its checkpoint holds,
    adapters merged and alone, instead of ``model``"""
    step: int = 0
    """which checkpoint; 0 is the newest"""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """type of the stored weights"""
    shard_bytes: int = 5_000_000_000
    """start a new file beyond this size"""
    check: bool = True
    """read the directory back and compare its tensors and logits with the source's"""


@dataclass(frozen=True)
class Report:
    """Gather a run's results: summary.json, a table on the terminal, report.html."""

    title: str = "A dynamic reranker, trained"
    evaluation: str = "evaluate"
    """the stage whose predictions are reported"""
    before: str = "behavior cloning"
    """the model before feedback, by its name in the evaluation"""
    after: str = "after feedback"
    """the model after feedback"""
    notes: tuple[str, ...] = ()
    """remarks shown at the top of the page"""
