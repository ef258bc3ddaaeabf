"""Prepared datasets: TFDS builders that write ArrayRecord and are read without TensorFlow.

A prepared question is a record of three texts to look at (``id``, ``question``, ``answers``) and
``record``, the whole question as a line of our format, from which it is read back exactly; TFDS
itself would round scores to 32 bits.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError, MissingExtra, nearest
from dynarag_jax.files import PathLike, dump_line
from dynarag_jax.records import Question, question_from_json, question_to_json

VERSION = "1.0.0"


def _tfds() -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        missing = "array_record" if "array_record" in str(error) else "tensorflow-datasets"
        raise MissingExtra(missing, "data", "a prepared dataset") from None
    tfds.disable_progress_bar()
    return tfds


def builder(
    name: str,
    directory: PathLike,
    splits: Mapping[str, Callable[[], Iterator[Question]]],
    description: str = "",
) -> Any:
    """A TFDS builder of questions, a ``GeneratorBasedBuilder`` with ``file_format='array_record'``.

    Args:
      name: of the dataset: letters, digits and ``_``.
      directory: TFDS' ``data_dir``; the dataset comes to lie in ``directory/name/1.0.0``.
      splits: split -> what makes its questions anew, in their order.
    """
    tfds = _tfds()
    text = tfds.features.Text

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description or f"Questions of {name}, as dynarag_jax records.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "question": text(),
                    "answers": tfds.features.Sequence(text()),
                    "record": text(),
                }
            ),
            disable_shuffling=True,  # the file's order is kept
        )

    def split_generators(self: Any, manager: Any) -> Any:
        del self, manager
        return {split: examples(make) for split, make in splits.items()}

    def examples(make: Callable[[], Iterator[Question]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, question in enumerate(make()):
            yield (
                i,
                {
                    "id": question.id,
                    "question": question.text,
                    "answers": list(question.answers),
                    "record": dump_line(question_to_json(question)).rstrip("\n"),
                },
            )

    # TFDS registers a class by its name and takes a dataset's name from it: one class a dataset.
    with tfds.core.registered.skip_registration():
        made = type(
            "Questions",
            (tfds.core.GeneratorBasedBuilder,),
            {
                "name": name,
                "VERSION": tfds.core.Version(VERSION),
                "_info": info,
                "_split_generators": split_generators,
                "_generate_examples": lambda self: iter(()),
                # TFDS would look for checksums of downloads beside this file, of which there are
                # none, by a package that it does not depend on (importlib_resources).
                "code_path": None,
                "__module__": __name__,
            },
        )
    return made(file_format="array_record", data_dir=str(directory))


def prepare(
    name: str,
    directory: PathLike,
    splits: Mapping[str, Callable[[], Iterator[Question]]],
    description: str = "",
) -> dict[str, int]:
    """Write a prepared dataset, whole or not at all; return the questions by split.

    Raises:
      InputError: it stands already, or a question is wrong.
    """
    target = dataset_directory(name, directory)
    if target.exists():
        raise InputError(f"{target}: is prepared already; remove it to prepare it anew")
    created = [path for path in (target.parent, target.parent.parent) if not path.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent}: cannot be written ({error.strerror})") from None
    try:
        # What TFDS leaves half written when it is killed, nobody would clear up: it writes where
        # our own next attempt does. It prints what it does.
        with (
            contextlib.redirect_stdout(None),
            _quiet(),
            tempfile.TemporaryDirectory() as downloads,
            atomic_directory(target) as place,
        ):
            made = builder(name, place / "made", splits, description)
            made.download_and_prepare(download_dir=downloads)
            for path in dataset_directory(name, place / "made").iterdir():
                path.rename(place / path.name)
            shutil.rmtree(place / "made")
    except Exception as error:
        for path in created:
            with contextlib.suppress(OSError):  # something else is in it
                path.rmdir()
        # TFDS wraps what the questions' reader raises.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise
    return {split: info.num_examples for split, info in made.info.splits.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def dataset_directory(name: str, directory: PathLike) -> Path:
    """Where a dataset lies under TFDS' directory."""
    return Path(directory) / name / VERSION


def is_prepared(path: PathLike) -> bool:
    """Whether a directory is a prepared dataset, or holds one version of one."""
    return _version(Path(path)) is not None


def _version(path: Path) -> Path | None:
    if (path / "dataset_info.json").is_file():
        return path
    versions = sorted(p.parent for p in path.glob("*.*.*/dataset_info.json"))
    return versions[-1] if versions else None


class PreparedQuestions(Sequence[Question]):
    """One split of a prepared dataset, read lazily, with random access, without TensorFlow.

    Raises:
      InputError: there is no such dataset or split, or a record is no question of ours.
    """

    def __init__(self, path: PathLike, split: str):
        """Args:
        path: the directory of the dataset or of one version.
        split: one of ``splits(path)``.
        """
        version = _version(Path(path))
        if version is None:
            raise InputError(f"{path}: no prepared dataset here (dataset_info.json is missing)")
        made = _open(version)
        if split not in made.info.splits:
            known = list(made.info.splits)
            raise InputError(
                f"{version}: no split '{split}'{nearest(split, known)}; it has {', '.join(known)}"
            )
        if "record" not in made.info.features:
            raise InputError(f"{version}: was not prepared by train.prepare (no field 'record')")
        self._where = f"{version}[{split}]"
        try:
            self._source = made.as_data_source(split=split)
        except Exception as error:  # noqa: BLE001 - TFDS raises many kinds for one cause
            raise InputError(f"{self._where}: cannot be read ({_line(error)})") from None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        where = f"{self._where}:{index + 1}"
        try:
            value = json.loads(self._source[index]["record"])
        except Exception as error:  # noqa: BLE001 - a damaged file shows in many ways
            raise InputError(f"{where}: cannot be read ({_line(error)})") from None
        return question_from_json(value, where)


def splits(path: PathLike) -> dict[str, int]:
    """The splits of a prepared dataset, and how many questions each holds."""
    version = _version(Path(path))
    if version is None:
        raise InputError(f"{path}: no prepared dataset here (dataset_info.json is missing)")
    return {name: split.num_examples for name, split in _open(version).info.splits.items()}


def _open(place: Path) -> Any:
    tfds = _tfds()
    try:
        with _quiet():
            return tfds.builder_from_directory(str(place))
    except Exception as error:  # noqa: BLE001 - whatever a damaged directory makes TFDS raise
        raise InputError(f"{place}: no dataset that TFDS can open ({_line(error)})") from None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
