"""PyTerrier: a transformer that keeps what should be read.

from dynarag_jax.integrations.pyterrier import DynamicTransformer

pipeline = bm25 % 20 >> pt.text.get_text(index, "text") >> DynamicTransformer(MODEL)
"""

from __future__ import annotations

from typing import Any

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.integrations.source import document, open_reranker

try:
    import pandas as pd
    import pyterrier as pt
except ImportError:
    raise MissingExtra("pyterrier", "pyterrier", "the PyTerrier transformer") from None


class DynamicTransformer(pt.Transformer):
    """Keeps the rows that the policy chooses of each query, with its scores and ranks from 0.

    Other columns stay as they are. The candidates of a query are read in the order of their ranks,
    where the frame has them.

    Args:
      reranker: a model directory, a server's address, or a ``Reranker``.
      top_k: at most so many a query; None leaves the number to the policy.
      text, title: columns with the documents' texts and, where there is one, their titles.
    """

    def __init__(
        self, reranker: Any, top_k: int | None = None, text: str = "text", title: str = "title"
    ):
        super().__init__()
        self.reranker, self.top_k, self.text, self.title = reranker, top_k, text, title
        self._ranker = open_reranker(reranker)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Rows of ``qid, query, docno`` and the text's column in, fewer of them out.

        Raises:
          InputError: a column is missing, or a query's rows name several queries.
        """
        for name in ("qid", "query", "docno", self.text):
            if name not in inp.columns:
                raise InputError(
                    f"DynamicTransformer: the frame has no column '{name}'; it has "
                    f"{', '.join(map(str, inp.columns))}"
                )
        if "rank" in inp.columns:
            inp = inp.sort_values(["qid", "rank"], kind="stable", key=_by_appearance(inp["qid"]))
        groups = [own for _, own in inp.groupby("qid", sort=False)]
        for own in groups:
            if own["query"].nunique(dropna=False) > 1:
                raise InputError(
                    f"DynamicTransformer: the rows of qid '{own['qid'].iloc[0]}' have several "
                    f"queries"
                )
        lists = self._ranker.rank_all(
            [str(own["query"].iloc[0]) for own in groups],
            [self._documents(own) for own in groups],
            self.top_k,
        )
        kept = [
            own.iloc[[row["corpus_id"] for row in rows]].assign(
                score=[row["score"] for row in rows], rank=range(len(rows))
            )
            for own, rows in zip(groups, lists, strict=True)
            if rows
        ]
        if kept:
            return pd.concat(kept, ignore_index=True)
        return inp.iloc[:0].assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))

    def _documents(self, own: pd.DataFrame) -> list[dict[str, str]]:
        texts = own[self.text].tolist()
        titles = own[self.title].tolist() if self.title in own.columns else [None] * len(texts)
        return [document(text, title) for text, title in zip(texts, titles, strict=True)]


def _by_appearance(qids: pd.Series) -> Any:
    """A sort key that leaves queries in the order in which they came."""
    place = {qid: i for i, qid in enumerate(qids.unique())}
    return lambda column: column.map(place) if column.name == "qid" else column
