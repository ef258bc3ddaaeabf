"""What training stages share: streams of examples, contexts, and the common fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.models.list_head import ListHeadConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import Objectives
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.training.optimizer import OptimizerConfig


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
    sampled: float = 0.0
    """in ``feedback``, a list of the question's rollout, drawn by its share in making the reference
    answer likely: the generator's half of DRO (arXiv 2505.03075)"""


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
class EncoderTraining:
    """An encoder policy: how it makes lists, where it begins anew, and what of it is trained."""

    trained: TrainedEncoder = TrainedEncoder()
    head: ListHeadConfig = ListHeadConfig()
    pooling: Literal["first", "mean"] = "first"
    """a pair's vector: the hidden state of its first position, or the mean of all"""
    interaction: bool = False
    """candidates see each other inside the encoder (Set-Encoder, arXiv 2404.06912)"""
    reencode: int = 0
    """word pieces of each chosen passage that the next step reads again, beside each candidate;
    0 reads candidates once"""
    reread: int = 0
    """of ``reencode``: candidates that later steps read again, those that score best before
    anything is chosen; 0 reads all"""
    pieces: int = 160
    """word pieces of a pair at most; longer passages are cut, and counted"""
    negatives: int = 0
    """of behavior cloning: candidates that are not needed beside those that are, drawn anew for
    each example; 0 takes all. Fewer cost less, and show the policy smaller sets than it will see"""
    rate: float = 0.05
    """learning rate of the encoder, as a share of the head's, which is the optimizer's"""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError(f"encoder: rate = {self.rate} must lie in (0, 1]")
        for name in ("reencode", "reread", "negatives"):
            if getattr(self, name) < 0:
                raise InputError(f"encoder: {name} = {getattr(self, name)} must not be negative")
        if self.reread and not self.reencode:
            raise InputError(
                f"encoder: reread = {self.reread} is of a policy that reads again what was chosen; "
                f"set reencode, too"
            )
        if self.reencode and self.trained.part == "frozen":
            raise InputError(
                f"encoder: reencode = {self.reencode} reads what was chosen anew each step, and "
                f"trained.part = frozen computes vectors once; train a part of the encoder"
            )


LIMITS = {"reranker": "rerank_tokens", "generator": "answer_prompt_tokens"}
"""Streams by the limit of their prompts, which a stream's ``length`` takes the place of."""


@dataclass(frozen=True)
class StreamShape:
    """The largest padded batch of a stream: a prompt's and a branch's tokens, and its branches."""

    stream: Stream
    prompt: int
    branches: int
    branch: int


@dataclass(frozen=True)
class Train:
    """What every training stage shares."""

    init: str = ""
    """model directory to start from; empty starts at random with ``model``"""
    policy: Literal["decoder", "encoder"] = "decoder"
    """what draws lists: a language model that writes them and answers, too; or a small encoder with
    a list head, of which ``init`` is a cross-encoder, an encoder or a policy"""
    encoder: EncoderTraining = EncoderTraining()
    """of ``policy`` encoder"""
    tokenizer: str = ""
    """tokenizer directory; empty takes the model directory's"""
    questions: str = "{run}/label/train.jsonl"
    """questions with passages, answers and expert lists"""
    prompts: PromptConfig = INHERITED
    more_passages: MorePassages = INHERITED
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
    keep: SameResult[int] = 2
    """latest checkpoints kept"""
    best: str = ""
    """figure by which the best checkpoints are kept beside the latest, such as 'loss': its mean
    over the steps since the checkpoint before; empty keeps none as the best"""
    best_is: Literal["lowest", "highest"] = "lowest"
    keep_best: int = 1
    """best checkpoints kept"""
    final: Literal["last", "best"] = "last"
    """which checkpoint becomes the stage's model"""
    log_every: SameResult[int] = 10
    """steps between lines of metrics"""
    lengths: int = 4
    """padded prompt lengths of a stream, chosen from its data; each is compiled once, and one more
    where something exceeds them. 1 pads every prompt to the limit and sorts nothing by length"""
    nonfinite: Literal["stop", "skip"] = "stop"
    """where loss or gradient are not finite: stop the run, or leave that update out"""
    profile: SameResult[tuple[int, int]] = (0, 0)
    """first and last step of a profiler trace, written to the stage's directory; 0 0 is none"""

    def __post_init__(self) -> None:
        for name in ("keep", "keep_best", "log_every", "lengths", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.final == "best" and not self.best:
            raise InputError("final 'best' needs a figure to be best by: set 'best', say to 'loss'")
        if self.policy == "encoder":
            self._require_encoder()
        else:
            self._require_one_order()
        first, last = self.profile
        if (first, last) != (0, 0) and not 1 <= first <= last:
            raise InputError(f"profile = {first} {last}: steps count from 1, the first one first")
        streams = [value for value in vars(self).values() if isinstance(value, Stream)]
        if not any(stream.batch and stream.objectives.active() for stream in streams):
            raise InputError("nothing to train on: every stream has batch 0 or no objective")
        if self.prompts is not INHERITED:
            for name, limit in LIMITS.items():
                length, most = getattr(self, name).length, getattr(self.prompts, limit)
                if length > most:
                    raise InputError(
                        f"{name}.length = {length} is more than prompts.{limit} = {most}, which "
                        f"the other stages show; raise that, or leave the length at 0"
                    )

    def _require_one_order(self) -> None:
        """Refuse what a language model does not compute: a list's likelihood in any order."""
        for name, stream in vars(self).items():
            if isinstance(stream, Stream) and stream.batch and stream.objectives.reads("sets"):
                raise InputError(
                    f"{name}: objective 'set_nll' adds up all orders of a list, which an encoder "
                    f"policy computes and a language model does not; set its weight to 0"
                )

    def _require_encoder(self) -> None:
        """Refuse what an encoder policy has no use for."""
        if not self.init:
            raise InputError(
                "an encoder policy begins with a cross-encoder, an encoder or a policy: set 'init'"
            )
        if self.prompts is not INHERITED and self.prompts.thought_tokens:
            raise InputError(
                f"prompts.thought_tokens = {self.prompts.thought_tokens}: an encoder policy thinks "
                f"nothing before its lists; set it to 0"
            )
        if self.lora.rank or self.adapters:
            raise InputError(
                "lora and adapters are a decoder's; of an encoder policy, set "
                "encoder.trained.part to 'lora'"
            )
        if idle := self.reranker.objectives.reads("prompt"):
            raise InputError(
                f"reranker: objective '{idle[0]}' learns a prompt's tokens, and an encoder policy "
                f"writes none; set its weight to 0"
            )
        if self.model.remat not in ("none", "full"):
            raise InputError(
                f"model.remat = '{self.model.remat}': of an encoder it is none or full"
            )
        if not self.reranker.batch:
            raise InputError("an encoder policy learns lists alone: reranker.batch must not be 0")

    def overruled(self) -> list[str]:
        """What the streams' lengths say against the prompts' limits, a line each."""
        return [
            f"{name}.length = {stream.length} cuts this stage's prompts below prompts.{limit} = "
            f"{getattr(self.prompts, limit)}, which the other stages show"
            for name, limit in LIMITS.items()
            if (stream := getattr(self, name)).batch
            and 0 < stream.length < getattr(self.prompts, limit)
        ]

    def shapes(self, list_tokens: int, samples: int) -> dict[str, StreamShape]:
        """The shapes of the stage's streams by name.

        Args:
          list_tokens: tokens of the longest list.
          samples: lists a question, for objectives that take all of them.
        """
        del samples
        p = self.prompts
        return {
            "reranker": StreamShape(self.reranker, p.rerank_tokens, 1, list_tokens),
            "generator": StreamShape(self.generator, p.answer_prompt_tokens, 1, p.answer_tokens),
        }
