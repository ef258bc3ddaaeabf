"""Prompts against the model's positions, and candidates against prompts."""

from __future__ import annotations

import functools
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json
from dynarag_jax.launch.checks.finding import Finding, Subject, kinds, prompts_are_read
from dynarag_jax.launch.plan import ID_TOKENS
from dynarag_jax.launch.plan_models import NotFetched, hub_config, is_hub_id, model_shape
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.prompts import PromptConfig, render, rerank_messages
from dynarag_jax.records import Question
from dynarag_jax.thoughts import find_thinking

INSTRUCTION = {"instruct": 120, "compact": 12}
"""Tokens of a reranker's prompt without its passages, where no tokenizer counts them."""


def check_lengths(subject: Subject) -> list[Finding]:
    """Compare the prompts' limits with the positions of each stage's model."""
    findings = []
    for name, stage in subject.chosen():
        if "Train" not in kinds(stage) and not hasattr(stage, "dtype"):
            continue
        p = getattr(stage, "prompts", None)
        if not isinstance(p, PromptConfig) or _of_encoder(stage):
            continue
        for text in models_of(stage):
            try:
                shape = shape_of(subject, stage, text)
            except InputError:
                continue  # what is wrong with it is said beside the paths, or by the memory's plan
            if shape is not None:
                findings += _compare(name, p, stage, *shape, subject.tokenizers)
    return list(dict.fromkeys(findings))


def _of_encoder(stage: Any) -> bool:
    """Whether a stage trains an encoder policy, which reads no prompts."""
    return "Train" in kinds(stage) and stage.policy == "encoder"


def models_of(stage: Any) -> list[str]:
    """Where the models lie whose positions the stage's prompts take."""
    if "Train" in kinds(stage):
        return [stage.init]
    named = getattr(stage, "models", None) or {"": getattr(stage, "model", "")}
    return [text for text in named.values() if text]


def shape_of(subject: Subject, stage: Any, text: str) -> tuple[DecoderConfig, Any] | None:
    """A model's shape and the directory of its tokenizer; None where nobody knows it yet.

    Raises:
      InputError: its config.json is wrong.
    """
    try:
        if "Train" in kinds(stage):
            return model_shape(subject.run, subject.stages, stage, fetch=False)
        path, maker = subject.place(text), subject.stages.get(subject.maker(text))
        if (config := path / "config.json").is_file():
            return config_from_hf(read_json(config), str(config)), path
        if maker is not None and _of_encoder(maker):
            return None
        if maker is not None and "Train" in kinds(maker):
            return model_shape(subject.run, subject.stages, maker, fetch=False)
        if maker is not None and isinstance(getattr(maker, "model", None), str):
            return shape_of(subject, maker, maker.model) if maker is not stage else None
        if not path.exists() and is_hub_id(text):
            config = hub_config(text, fetch=False)
            return config_from_hf(read_json(config), str(config)), config.parent
    except NotFetched:
        pass
    return None


def _compare(
    name: str, p: PromptConfig, stage: Any, cfg: DecoderConfig, directory: Any, exact: bool
) -> list[Finding]:
    listed, overhead = ID_TOKENS * min(p.max_list, p.ids) + 2, INSTRUCTION[p.style]
    listed += p.thought_tokens
    tokens = "about "
    if exact and directory is not None:
        try:
            listed, overhead = _counted(str(directory), p)
            tokens = ""
        except InputError:
            pass  # no tokenizer there, or one that cannot write lists: the stage says it
    rerank = getattr(getattr(stage, "reranker", None), "length", 0) or p.rerank_tokens
    answer = getattr(getattr(stage, "generator", None), "length", 0) or p.answer_prompt_tokens
    findings, most = [], cfg.positions
    for what, field, prompt, reply in (
        ("reranker's", "prompts.rerank_tokens", rerank, listed),
        ("generator's", "prompts.answer_prompt_tokens", answer, p.answer_tokens),
    ):
        if prompt > most:
            findings.append(
                Finding(
                    "problem",
                    name,
                    f"the {what} prompts may take {prompt} tokens, and the model has {most} "
                    f"positions (max_position_embeddings); lower {field} to "
                    f"{max(most - reply, 1)}",
                    sure=False,
                )
            )
        elif prompt + reply > most:
            findings.append(
                Finding(
                    "note",
                    name,
                    f"the {what} longest prompts ({prompt}) leave {most - prompt} of the model's "
                    f"{most} positions for a reply of {tokens}{reply}; {field} = {most - reply} "
                    f"leaves room",
                )
            )
    each = (rerank - overhead) // p.ids
    if each < 1 and not tokens:
        text = f"{rerank} tokens show no {p.ids} passages (prompts.ids); raise rerank_tokens"
        findings.append(Finding("problem", name, text, sure=False))
    elif not findings:
        findings.append(
            Finding(
                "ok",
                name,
                f"{rerank} + {answer} tokens within {most} positions; {p.ids} passages of "
                f"{tokens}{each} tokens",
            )
        )
    return findings


@functools.cache
def _counted(directory: str, p: PromptConfig) -> tuple[int, int]:
    """Tokens of the longest list, and of a reranker's prompt without question and passages."""
    tokenizer: Any = load_tokenizer(directory)
    thinking = find_thinking(tokenizer, p.style) if p.thought_tokens else None
    messages = rerank_messages(Question("", "?"), (), p.style, thinking)
    bare = render(tokenizer, messages, thinking)
    return list_grammar(tokenizer, p)[0].longest(p.max_list), len(bare)


def check_candidates(subject: Subject) -> list[Finding]:
    """Say where more candidates are retrieved than a prompt shows."""
    findings = []
    retrieved = [
        (name, stage.passages) for name, stage in subject.stages.items()
        if "Retrieve" in kinds(stage)
    ]  # fmt: skip
    if not retrieved:
        return []
    where, count = max(retrieved, key=lambda one: one[1])
    for name, stage in subject.chosen():
        p = getattr(stage, "prompts", None)
        shows = "Facts" not in kinds(stage) and prompts_are_read(stage)
        if isinstance(p, PromptConfig) and shows and count > p.ids:
            text = f"'{where}' finds {count} passages a question, and a prompt shows {p.ids}"
            rule = getattr(stage, "more_passages", "")
            if rule == "set_aside":
                text += "; such questions are set aside (more_passages = show_first samples them)"
            elif rule:
                written = {"Evaluate", "Rerank", "Bench"} & kinds(stage) and rule == "windows"
                text += (
                    "; windows go over all of them" if written else "; the first ones are shown"
                ) + f" (more_passages = {rule})"
            findings.append(Finding("note", name, text))
    return findings
