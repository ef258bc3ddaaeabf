"""A model as a Python package of its own: for whoever has an index of packages and no model hub."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import PAGE
from dynarag_jax.exchange.int8 import PLAIN, WEIGHTS, write_int8
from dynarag_jax.files import PathLike

_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")
"""Of PEP 440 what people write."""


@dataclass(frozen=True)
class PackageConfig:
    """A Python package that holds the model, its weights in eight bits."""

    name: str = ""
    """what is installed and what ``package:NAME`` asks for; empty writes none"""
    version: str = "1.0.0"
    license: str = ""
    """SPDX expression, of the weights: what their data and their beginnings allow"""
    card: str = ""
    """Markdown file that the model's page ends with: data and their licenses, results, limits"""

    def __post_init__(self) -> None:
        if not self.name:
            return
        if not self.name.isidentifier() or self.name.lower() != self.name:
            raise InputError(
                f"package.name = '{self.name}' is no name of a Python package: lower-case letters, "
                f"digits and underscores"
            )
        if not _VERSION.fullmatch(self.version):
            raise InputError(
                f"package.version = '{self.version}' is no version of a Python package, such as "
                f"1.0.0"
            )
        for field, what in (("license", "a license"), ("card", "a page on data and limits")):
            if not getattr(self, field):
                raise InputError(f"package.{field}: what is given away needs {what}")


def write_package(model: PathLike, target: PathLike, config: PackageConfig, card: Path) -> None:
    """Write a model's directory as the source of a package.

    ``pip wheel TARGET`` builds it.

    Args:
      model: a directory with a float32 model.safetensors.
      target: made anew.

    Raises:
      InputError: there are no such weights, or no card.
    """
    model, target = Path(model), Path(target)
    if not (model / PLAIN).is_file():
        raise InputError(f"{model}: no {PLAIN} to pack")
    try:
        more = card.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"package.card: {card}: {error.strerror}") from None
    if target.exists():
        shutil.rmtree(target)
    inside = target / config.name / "model"
    inside.mkdir(parents=True)
    for file in sorted(model.iterdir()):
        if file.is_file() and file.name not in (PLAIN, PAGE) and file.suffix != ".onnx":
            shutil.copyfile(file, inside / file.name)
    write_int8(model / PLAIN, inside / WEIGHTS)
    page = (model / PAGE).read_text(encoding="utf-8") if (model / PAGE).is_file() else ""
    page = f"{page.rstrip()}\n\n{_USE.format(name=config.name)}\n{more.rstrip()}\n".lstrip()
    (target / PAGE).write_text(page, encoding="utf-8")
    (inside / PAGE).write_text(page, encoding="utf-8")
    (target / config.name / "__init__.py").write_text(
        f'"""A model for dynarag_jax: package:{config.name}."""\n', encoding="utf-8"
    )
    (target / "pyproject.toml").write_text(
        _PROJECT.format(name=config.name, version=config.version, license=config.license),
        encoding="utf-8",
    )


_USE = """## As a package

```python
from dynarag_jax import Reranker

reranker = Reranker("package:{name}")
```

Matrices are stored in eight bits, a factor for each row, and read as float32.
"""

_PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
description = "A model for dynarag_jax"
readme = "README.md"
license = "{license}"
requires-python = ">=3.11"

[tool.setuptools]
packages = ["{name}"]

[tool.setuptools.package-data]
"{name}" = ["model/*"]
"""
