"""Directories of questions, corpus and judgments, as BEIR and MTEB lay them out.

queries.jsonl            corpus.jsonl            qrels/test.tsv       BEIR
queries/*.parquet        corpus/*.parquet        qrels/test.tsv, data/test-*.parquet   the hub
queries.jsonl            corpus.jsonl            qrels/test.jsonl     MTEB
"""

from __future__ import annotations

from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike

_PACKED = ("", ".gz", ".zst")
_ENDINGS = (".jsonl", ".parquet", ".json", ".tsv", ".txt")


def queries_file(path: PathLike) -> Path:
    """The file of questions: the path itself, or that of a directory.

    Raises:
      InputError: the directory has none, or several.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    files = _named(place, "queries") or _inside(place / "queries")
    if len(files) != 1:
        many = f"{len(files)} files of queries" if files else "no queries.jsonl"
        raise InputError(
            f"{place}: expected a file, found a directory: neither a prepared dataset "
            f"(dataset_info.json) nor one of BEIR's or MTEB's ({many})"
        )
    return files[0]


def judgments_file(place: Path, split: str) -> Path:
    """The judgments of a split in a directory of BEIR's or MTEB's.

    Raises:
      InputError: there are none, or several files of them.
    """
    folders = (place / "qrels", place / "data", place / "default", place)
    for folder in folders:
        files = _named(folder, split) or sorted(folder.glob(f"{split}-*.parquet"))
        if len(files) == 1:
            return files[0]
        if files:
            raise InputError(f"{place}: has {len(files)} files of judgments of '{split}'")
    known = sorted({p.stem.split("-")[0].split(".")[0] for p in (place / "qrels").glob("*")})
    raise InputError(
        f"{place}: no judgments of the split '{split}' (qrels/{split}.tsv)"
        + (f"; it has {', '.join(known)}" if known else "")
    )


def _named(folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}{end}{packed}" for end in _ENDINGS for packed in _PACKED]
    return [path for path in paths if path.is_file()][:1]


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix in (".parquet", ".jsonl", ".gz", ".zst"))
