"""Serve a model over HTTP: rerank endpoints, chat completions, lists explained.

    dynarag serve runs/mine/export/model --port 8000
    dynarag serve CROSS_ENCODER --how.rule.name threshold --how.rule.threshold 0.3
    dynarag serve CROSS_ENCODER --generator MODEL --corpus.files corpus.jsonl
    dynarag serve CONFIG.py --port 8000

MODEL is a policy of a run, any Hugging Face directory of a supported family, ``package:NAME``, or a
cross-encoder, whose order a rule cuts off. A config file whose stages hold a ``Serve`` gives the
options. docs/serving.md says what clients send and get.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional
from dynarag_jax.launch.service_log import log_to_console
from dynarag_jax.serving.corpus import CorpusOptions
from dynarag_jax.serving.keys import KeyOptions
from dynarag_jax.serving.limits import Limits
from dynarag_jax.serving.loading import ServedModel

CONFIG_OPTIONAL = True
"""A config file's ``Serve`` may give the options; without one they stand alone."""


@dataclass(frozen=True)
class Serve:
    """Serve a model over HTTP: rerank endpoints, chat completions, lists explained."""

    model: Positional[str] = ""
    """model directory, package:NAME or hub id; or a config file that holds these options"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 takes requests from other machines"""
    port: int = 8000
    """0 takes a free one"""
    name: str = ""
    """the model's name in replies; empty is its directory's"""
    names: tuple[str, ...] = ()
    """other names that requests may call it by, where ``strict`` is on"""
    strict: bool = False
    """refuse requests that name another model; else any name is served, and the reply says which"""
    generator: str = ""
    """language model that answers, where ``model`` is none"""
    how: ServedModel = ServedModel()
    mode: Literal["list", "all"] = "list"
    """what rerank endpoints give where a request does not say: the policy's list, or all documents,
    those on the list above 0.5 (Open WebUI needs all)"""
    task: Literal["short", "paragraph"] = "short"
    """form of answers where a request does not say"""
    passages: int = 20
    """candidates that a question without documents is given from the corpus"""
    corpus: CorpusOptions = CorpusOptions()
    keys: KeyOptions = KeyOptions()
    limits: Limits = Limits()
    log_texts: bool = False
    """also log queries, lists and answers; without it logs hold no text of users"""
    seed: int = 0
    """of answers that are drawn (temperature above 0) in requests without a seed of their own"""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise InputError(f"serve: port = {self.port} must lie in 0..65535")
        if self.passages < 1:
            raise InputError(f"serve: passages = {self.passages} must be positive")


def run(console: Console, options: Serve) -> None:
    """Serve until SIGTERM or Ctrl-C; what was taken by then is finished."""
    if not options.model:
        raise InputError("serve: name the model: dynarag serve MODEL")
    for package in ("starlette", "uvicorn", "prometheus_client", "pydantic"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve", "dynarag serve")
    from dynarag_jax.serving.http.building import build_served
    from dynarag_jax.serving.http.run import serve

    log_to_console(console, logging.getLogger("dynarag_jax.serving"))
    served = build_served(
        options.model, options.how, options.limits, console,
        generator=options.generator, corpus=options.corpus, keys=options.keys.read(),
        name=options.name, names=options.names, strict=options.strict, mode=options.mode,
        task=options.task, passages=options.passages, texts=options.log_texts, seed=options.seed,
    )  # fmt: skip
    if not served.keys:
        console.log(
            "no API key is set: whoever reaches the port is served (--keys.file, or the "
            f"environment variable {options.keys.variable})"
        )
    serve(served, options.host, options.port, console.log)
    console.log("stopped; every request that was taken has its reply")
