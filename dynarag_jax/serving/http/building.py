"""A server's parts put together from its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.prompts import rerank_prompt
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.voice import Voice
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.serving.corpus import CorpusOptions, open_corpus
from dynarag_jax.serving.cutting import Cutter, bare_tokenizer
from dynarag_jax.serving.http.app import hashed
from dynarag_jax.serving.http.measures import Measures
from dynarag_jax.serving.http.served import Served
from dynarag_jax.serving.language_model import WrittenLists
from dynarag_jax.serving.limits import Limits
from dynarag_jax.serving.loading import (
    ServedModel,
    calibration_of,
    load_generator,
    load_list_policy,
)
from dynarag_jax.serving.policies import ListPolicy
from dynarag_jax.serving.work import Work


def fitting_limits(limits: Limits, policy: ListPolicy, longest: int) -> Limits:
    """The limits of texts, lowered to what one prompt holds.

    Args:
      longest: tokens of a question and a passage together, of a scorer.
    """
    query, document = limits.query_tokens, limits.document_tokens
    if isinstance(policy, WrittenLists):
        room = room_of_prompt(policy.sampler)
        # The query stands in a prompt twice, and a passage with a number and marks of its own.
        query = min(query, room // 6)
        document = min(document, room - 2 * query - 16)
    else:
        query, document = min(query, longest), min(document, longest)
    return replace(limits, query_tokens=max(1, query), document_tokens=max(1, document))


def room_of_prompt(sampler: PolicySampler) -> int:
    """Tokens that a reranker's prompt has for the query and one passage."""
    p = sampler.prompts
    bare = Question("empty", "?", passages=(Passage("0", "."),))
    frame = len(rerank_prompt(sampler.policy.tokenizer, bare, p.style, 1 << 30).tokens)
    if frame >= p.rerank_tokens:
        raise InputError(
            f"prompts.rerank_tokens = {p.rerank_tokens} does not hold the prompt's own words, "
            f"{frame} tokens; raise it"
        )
    return p.rerank_tokens - frame


def build_served(
    model: str,
    how: ServedModel,
    limits: Limits,
    voice: Voice,
    *,
    generator: str = "",
    corpus: CorpusOptions | None = None,
    keys: Sequence[str] = (),
    name: str = "",
    names: tuple[str, ...] = (),
    strict: bool = False,
    mode: Literal["list", "all"] = "list",
    task: Literal["short", "paragraph"] = "short",
    passages: int = 20,
    texts: bool = False,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
) -> Served:
    """Load what is served; the fields are those of ``Served``.

    Raises:
      InputError: a model, the corpus or an option is wrong.
    """
    policy = load_list_policy(model, how, seed, devices)
    if (calibration := calibration_of(model)) is not None:
        voice.log(f"{model}: {calibration}")
    writer: PolicySampler | None = None
    if generator:
        writer = load_generator(generator, replace(how, prompts=None), seed, devices)
    elif isinstance(policy, WrittenLists):
        writer = policy.sampler
    search = open_corpus(voice, corpus) if corpus is not None and corpus.given else None
    if search is not None and writer is None:
        raise InputError(
            f"{model}: a {policy.kind} writes no answers, and only these search the corpus; name a "
            f"language model with --generator, or leave the corpus out"
        )
    limits = fitting_limits(limits, policy, how.longest)
    longest = how.longest
    if isinstance(policy, WrittenLists):
        longest = policy.sampler.prompts.rerank_tokens
    return Served(
        work=Work(policy, writer, limits.queue, limits.queue_documents),
        limits=limits,
        cutter=Cutter(bare_tokenizer(model_directory(model)), limits.document_tokens),
        measures=Measures(),
        name=name or Path(model).name,
        names=names,
        strict=strict,
        mode=mode,
        task=task,
        passages=passages,
        max_model_len=longest,
        search=search,
        keys=tuple(hashed(key) for key in keys),
        texts=texts,
    )
