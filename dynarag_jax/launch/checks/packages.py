"""Whether the optional packages that a configuration needs are installed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dynarag_jax.errors import MissingExtra
from dynarag_jax.launch.checks.finding import Finding, Subject, kinds
from dynarag_jax.launch.checks.needs import needs
from dynarag_jax.objectives.terms import LambdaLoss, ListMle
from dynarag_jax.training.config import Stream


@dataclass(frozen=True)
class Wanted:
    """A package by its name, what is imported of it, the extra that brings it, and for what."""

    package: str
    module: str
    extra: str
    purpose: str


def check_packages(subject: Subject) -> list[Finding]:
    """Find the optional packages of every stage, and of the run."""
    wanted: list[tuple[str, Wanted]] = []
    if subject.run.tensorboard:
        wanted.append(("", Wanted("tensorboard", "tensorboard", "watch", "run.tensorboard")))
    if subject.run.wandb:
        wanted.append(("", Wanted("wandb", "wandb", "watch", "run.wandb")))
    for name, stage in subject.chosen():
        wanted += [(name, one) for one in _wanted(stage)]
    findings = []
    for name, one in dict.fromkeys(wanted):
        if importlib.util.find_spec(one.module):
            findings.append(Finding("ok", name, f"{one.package} is installed"))
        else:
            error = MissingExtra(one.package, one.extra, one.purpose)
            findings.append(Finding("problem", name, str(error)))
    return findings


def _wanted(stage: Any) -> Iterator[Wanted]:
    kind = kinds(stage)
    builds = "BuildIndex" in kind or (
        "Retrieve" in kind and stage.source in ("dense", "hybrid") and not stage.indexed
    )
    if builds and stage.index.kind == "scann":
        yield Wanted("scann", "scann", "retrieval", "a ScaNN index (index.kind = 'scann')")
    if "Retrieve" in kind and stage.source in ("bm25", "hybrid"):
        yield Wanted("bm25s", "bm25s", "retrieval", f"BM25 (source = '{stage.source}')")
        if stage.bm25.language == "english":
            yield Wanted("PyStemmer", "Stemmer", "retrieval", "stemming for BM25")
    if "Train" in kind:
        streams = [getattr(stage, field.name) for field in dataclasses.fields(stage)]
        for stream in streams:
            if isinstance(stream, Stream) and stream.batch:
                for name, term in stream.objectives.active().items():
                    if isinstance(term, ListMle | LambdaLoss):
                        yield Wanted("rax", "rax", "listwise", f"the objective '{name}'")
    if "Export" in kind and stage.onnx:
        yield Wanted("onnx", "onnx", "onnx", "ONNX files")
        if "int8" in stage.onnx:
            yield Wanted("onnxruntime", "onnxruntime", "onnx", "8-bit ONNX files")
    for need in needs(stage):
        if need.kind in ("file", "corpus"):
            if need.text.endswith(".parquet"):
                yield Wanted("pyarrow", "pyarrow", "data", "reading Parquet")
            if need.text.endswith(".zst"):
                yield Wanted("zstandard", "zstandard", "data", "reading .zst files")
        elif need.text.endswith(".gguf"):
            yield Wanted("gguf", "gguf", "gguf", "reading GGUF files")
