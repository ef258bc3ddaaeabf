"""DynamicRAG in JAX: a reranker that decides which passages to read, in which order, how many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarag_jax.serving.reranker import Reranker as Reranker

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: importing the package imports neither JAX nor transformers.
    if name == "Reranker":
        from importlib import import_module

        return import_module("dynarag_jax.serving.reranker").Reranker
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
