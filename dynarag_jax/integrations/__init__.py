"""Rerankers of LangChain, LlamaIndex, Haystack and PyTerrier, a file each with an extra of its own.

Each takes a model directory, a ``Reranker``, or the address of ``dynarag serve``; see ``source``.
"""
