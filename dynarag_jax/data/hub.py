"""The files of a benchmark from the Hugging Face hub.

The hub keeps every public dataset as Parquet on the branch ``refs/convert/parquet``, as
``CONFIG/SPLIT/0000.parquet``, and shows it in the reader's cache; nothing of the dataset's own code
is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dynarag_jax.data.catalog import Benchmark
from dynarag_jax.errors import InputError, nearest

BRANCH = "refs/convert/parquet"
_FILE = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")


def hub_splits(names: Iterable[str], entry: Benchmark) -> dict[str, list[str]]:
    """The files of each split, from a listing of the branch.

    Raises:
      InputError: the listing lacks the benchmark's configuration, or has several to choose from.
    """
    configs: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if match := _FILE.fullmatch(name):
            splits = configs.setdefault(match["config"], {})
            # A split of which the hub converted the beginning only is no split to report on.
            if not match["split"].startswith("partial-"):
                splits.setdefault(match["split"], []).append(name)
    wanted = entry.hub_config or (next(iter(configs)) if len(configs) == 1 else "")
    if not configs.get(wanted):
        known = ", ".join(configs) or "nothing"
        raise InputError(
            f"hub dataset {entry.hub}: no whole files of '{wanted or 'one configuration'}'"
            f"{nearest(wanted, configs)}; there are {known}; get the files elsewhere and name them "
            f"with --from"
        )
    return configs[wanted]


def download(entry: Benchmark) -> dict[str, list[Path]]:
    """Download a benchmark's files into the hub's cache; the paths by split.

    Raises:
      InputError: the hub cannot be reached or has no such files.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().dataset_info(entry.hub, revision=BRANCH)
        splits = hub_splits([file.rfilename for file in info.siblings or ()], entry)
        return {
            split: [
                Path(hf_hub_download(entry.hub, file, repo_type="dataset", revision=BRANCH))
                for file in files
            ]
            for split, files in splits.items()
        }
    except Exception as error:
        # Beside OSErrors there are those of the hub's client and of the HTTP client it has today.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
        ):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(
            f"{entry.title}: cannot be had from the hub ({entry.hub}; {reason}); get its files "
            f"elsewhere and name them with --from"
        ) from None
