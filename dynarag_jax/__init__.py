"""DynamicRAG in JAX: a reranker that decides which passages to read, in which order, how many."""

__version__ = "0.1.0"
