"""Which kind of policy a directory holds, and how it is loaded.

A kind is told by the directory's ``config.json``; the prompts a model was trained with by what the
run that made it wrote beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from dynarag_jax.config import MorePassages
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.exchange.calibration import Calibration, read_calibration
from dynarag_jax.exchange.cards import MANIFEST
from dynarag_jax.exchange.cross_encoders import ARCHITECTURES
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.relevance import load_scorer
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.serving.encoder_lists import EncoderPolicyLists
from dynarag_jax.serving.language_model import WrittenLists
from dynarag_jax.serving.policies import ListPolicy
from dynarag_jax.serving.rules import CutOff
from dynarag_jax.serving.scored import ScoredLists
from dynarag_jax.sharding import make_mesh

Kind = Literal["auto", "language-model", "scorer", "encoder-policy"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class ServedModel:
    """How a model is made a policy."""

    kind: Kind = "auto"
    """auto goes by the model's directory: language-model writes lists, scorer scores passages one
    by one (cross-encoder, MonoT5), encoder-policy draws lists with a list head; as scorer, such a
    directory is its cross-encoder. A Qwen3-Reranker has a language model's architecture: say
    scorer"""
    prompts: PromptConfig | None = None
    """of a language model; by default those of the run that made it, where it says so beside the
    model, else the standard ones within the model's positions"""
    ids: int = 0
    """passages that a prompt shows at most; 0 is the prompts' own, as of the next two"""
    max_list: int = 0
    """passages in a list at most"""
    rerank_tokens: int = 0
    """longest reranker's prompt; what is shorter than the model was trained with costs less"""
    more_passages: MorePassages = "windows"
    """documents beyond what a prompt shows: windows over all of them, the first ones alone
    (show_first), or such requests are refused (set_aside)"""
    windows: Windows = Windows(window=0, budget=0)
    """for these; 0 takes what the prompts allow"""
    rule: CutOff = CutOff()
    """of a scorer: how many passages are listed"""
    longest: int = 512
    """of a scorer: tokens of a question and a passage together at most; what is longer is cut"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of weights and activations"""
    batch: int = 8
    """prompts of a language model in flight at once"""
    engine: EngineConfig = EngineConfig(turn=8, patience=4)
    """turns are short, so that nobody waits long for what others write"""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"kind = '{self.kind}' is none of {', '.join(KINDS)}{nearest(self.kind, KINDS)}"
            )
        for name, least in (
            ("batch", 1), ("longest", 1), ("ids", 0), ("max_list", 0), ("rerank_tokens", 0)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)} must be at least {least}")


def kind_of(directory: Path, kind: Kind) -> Literal["language-model", "scorer", "encoder-policy"]:
    """Whether a model writes lists, draws them with a list head, or scores passages.

    Raises:
      InputError: there is no config.json that says what the model is.
    """
    if kind != "auto":
        return kind
    if is_encoder_policy(directory):
        return "encoder-policy"
    where = directory / "config.json"
    if not where.is_file():
        raise InputError(f"{directory}: holds no config.json; expected a model directory")
    config = read_json(where)
    config = config if isinstance(config, dict) else {}
    found = (config.get("architectures") or [None])[0]
    scores = found in ARCHITECTURES or config.get("model_type") == "t5"
    return "scorer" if scores else "language-model"


def load_list_policy(
    source: PathLike, how: ServedModel, seed: int = 0, devices: Sequence[Any] | None = None
) -> ListPolicy:
    """Read a policy from a model directory, ``package:NAME`` or hub id.

    Args:
      devices: those that share the work; all local ones if None.

    Raises:
      InputError: no such model, or none of a kind that chooses lists.
    """
    directory = model_directory(source)
    kind = kind_of(directory, how.kind)
    if kind == "encoder-policy":
        mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        policy = load_encoder_policy(directory, mesh, dtype=how.dtype)
        if (calibration := read_calibration(directory)) is not None:
            policy = policy.with_bias(calibration.bias)
        return EncoderPolicyLists(EncoderSampler(policy, how.batch, seed))
    if kind == "scorer":
        scorer = load_scorer(directory, how.dtype, how.longest)
        return ScoredLists(scorer, how.rule, devices)
    sampler = load_generator(source, how, seed, devices)
    return WrittenLists(sampler, how.windows, how.more_passages)


def calibration_of(source: PathLike) -> Calibration | None:
    """The calibration that a model's lists follow; None where it has none."""
    return read_calibration(model_directory(source))


def load_generator(
    source: PathLike, how: ServedModel, seed: int = 0, devices: Sequence[Any] | None = None
) -> PolicySampler:
    """Read a language model that writes lists and answers.

    Raises:
      InputError: no such model, or its tokenizer cannot spell lists.
    """
    directory = model_directory(source)
    prompts = how.prompts or recorded_prompts(directory) or standard_prompts(directory)
    own = {name: getattr(how, name) for name in ("ids", "max_list", "rerank_tokens")}
    prompts = replace(prompts, **{name: value for name, value in own.items() if value})
    mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
    policy = load_policy(directory, mesh, prompts, how.dtype)
    if (calibration := read_calibration(directory)) is not None:
        policy = policy.with_bias(calibration.bias)
    return PolicySampler(policy, prompts, how.batch, seed, how.engine)


def standard_prompts(directory: Path) -> PromptConfig:
    """The standard prompts, cut to the positions of a model that has fewer."""
    config = read_json(directory / "config.json")
    positions = config.get("max_position_embeddings") if isinstance(config, dict) else None
    plain = PromptConfig()
    if not isinstance(positions, int) or positions < 1:
        return plain
    # Room for a list: an id takes a few tokens, with its brackets and separator.
    room = 6 * plain.max_list
    return PromptConfig(
        rerank_tokens=max(1, min(plain.rerank_tokens, positions - room)),
        answer_prompt_tokens=max(
            1, min(plain.answer_prompt_tokens, positions - plain.answer_tokens)
        ),
    )


def recorded_prompts(directory: Path) -> PromptConfig | None:
    """The prompts a model was trained with, where a run says so; None where nobody does.

    A stage's ``run.json`` lies beside its model; an export's ``manifest.json`` lies in it and tells
    of the stages behind it, the last of which counts.

    Raises:
      InputError: they are recorded, and are no prompts of this version.
    """
    beside, inside = directory.parent / "run.json", directory / MANIFEST
    found: list[tuple[str, Any]] = []
    if inside.is_file():
        manifest = read_json(inside)
        stages = manifest.get("stages") if isinstance(manifest, dict) else None
        for name, stage in (stages or {}).items():
            config = stage.get("config") if isinstance(stage, dict) else None
            found.append((f"{inside}: stage '{name}'", config))
    if beside.is_file():
        record = read_json(beside)
        found.append((str(beside), record.get("config") if isinstance(record, dict) else None))
    for where, config in reversed(found):
        prompts = config.get("prompts") if isinstance(config, Mapping) else None
        if isinstance(prompts, Mapping):
            return _prompts(where, prompts)
    return None


def _prompts(where: str, recorded: Mapping[str, Any]) -> PromptConfig:
    known = {field.name for field in fields(PromptConfig)}
    if unknown := set(recorded) - known - {"class"}:
        raise InputError(
            f"{where}: field 'prompts' holds '{min(unknown)}', which this version does not know; "
            f"give the prompts by option"
        )
    values = {name: value for name, value in recorded.items() if name in known}
    if isinstance(values.get("labels"), list):
        values["labels"] = tuple(values["labels"])
    return PromptConfig(**values)
