"""Where a model lies: a directory as it is, a hub id by way of ``huggingface_hub``'s cache."""

from __future__ import annotations

from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike

# Weights as safetensors only: pickles are not even fetched.
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def model_directory(source: PathLike, revision: str | None = None) -> Path:
    """The directory of a model: ``source`` itself, or the snapshot of a hub id (``org/name``).

    The hub is asked only when ``source`` is no directory and looks like an id; with
    ``HF_HUB_OFFLINE=1`` only the local cache is searched.

    Raises:
      InputError: no such directory, or the hub does not give the model.
    """
    path, name = Path(source), str(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{name}: expected a model directory, found a file")
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{name}: no such model directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # noqa: BLE001 - the hub's client raises errors of many unrelated classes
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: no such model directory, and the hub does not give it "
            f"({type(error).__name__}: {reason})"
        ) from None
