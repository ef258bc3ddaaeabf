"""Every command that README, docs and docstrings show is one that the programs understand.

A command is found in a code block or between backticks, as its shell would find it: behind
``srun``, in the quotes of an ``ssh``, with the block's variables. Its options are parsed by the
program's own parser; nothing runs. Names of files and models are anybody's; config files must be
there.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import io
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.launch import options
from dynarag_jax.launch.cli import COMMANDS, summaries
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.new import NewConfig
from dynarag_jax.launch.table import ALIASES, Program, program, program_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")
)]  # fmt: skip
CODE = sorted(
    str(p.relative_to(ROOT))
    for folder in ("train", "eval", "configs", "benchmarks", "dynarag_jax")
    for p in (ROOT / folder).rglob("*.py")
)
# A reader's own config, where a page means one, trains a language model, and its stages have their
# usual names: the others come last.
CONFIGS = sorted(
    (ROOT / "configs").glob("[a-z]*.py"),
    key=lambda p: (
        p.stem in ("black_box", "dro") or p.stem.startswith("encoder"),
        p,
    ),
)
ELSEWHERE = {"CONFIG", "CONFIG.py", "PATH", "MODULE", "NAME", "STAGE"}
"""Words that stand for what the reader has."""


# ---------------------------------------------------------------------------- finding commands


def blocks(text: str) -> Iterator[str]:
    """The code of a page of Markdown, or of a docstring: fenced, indented, or between backticks."""
    yield from re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    block: list[str] = []
    prose: list[str] = []
    for line in [*text.splitlines(), "end"]:
        begins = re.match(r"    |dynarag \w+ \S|python -m \S+ \S", line)
        if begins or (block and not line.strip()):
            block.append(line.strip())
        else:
            if block:
                yield "\n".join(block)
            block = []
            prose.append(line)
    for span in re.findall(r"(?<!`)(`{1,2})(?!`)([^`]+)\1(?!`)", "\n".join(prose)):
        yield " ".join(span[1].split())


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # an apostrophe in prose
        return line.split()


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a block that are ours, as words that begin with the program's name."""
    known: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        line = re.sub(r"\$\{?(\w+)\}?", lambda m: known.get(m[1], m[0]), line)
        if assigned := re.fullmatch(
            r"""(?:export )?(\w+)=("[^"]*"|'[^']*'|\S*)\s*(?:#.*)?""", line
        ):
            known[assigned[1]] = assigned[2].strip("\"'")
        yield from ours(words(line))


def ours(line: list[str]) -> Iterator[list[str]]:
    for place, word in enumerate(line):
        if " " in word:
            yield from ours(words(word))
            continue
        rest = line[place:]
        ends = (i for i, w in enumerate(rest) if i and re.fullmatch(r"[();<>|&]+", w))
        rest = rest[: next(ends, len(rest))]
        before = line[place - 1] if place else ""
        module = re.fullmatch(r"(train|eval|benchmarks)(\.\w+)+", word)
        first = not place or before in ("&&", ";") or "=" in before
        if (module and before == "-m") or (word in ("dynarag", "make") and first):
            yield rest
        elif Path(word).name == "dynarag" and "/" in word:
            yield ["dynarag", *rest[1:]]


def shown() -> dict[tuple[str, ...], list[str]]:
    """Every command of ours, and where it is shown."""
    found: dict[tuple[str, ...], list[str]] = {}
    for file in [*PAGES, *CODE]:
        text = (ROOT / file).read_text()
        texts = [text]
        if file.endswith(".py"):
            nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
            docs = [n for n in ast.walk(ast.parse(text)) if isinstance(n, nodes)]
            texts = [ast.get_docstring(node) or "" for node in docs]
        for block in (block for one in texts for block in blocks(one)):
            for command in commands(block):
                found.setdefault(normal(command), []).append(file)
    return found


def normal(command: list[str]) -> tuple[str, ...]:
    """The same command in one form: a stage has several names, a placeholder is nobody's option."""
    name, *rest = command
    if "..." in rest:
        rest = rest[: rest.index("...") + 1]
    opened = next((i for i, w in enumerate(rest) if w.startswith("[--")), len(rest))
    rest = [word.strip("[]") for word in rest[:opened]]
    if re.match(r"(train|eval)\.", name) and (ROOT / f"{name.replace('.', '/')}.py").is_file():
        stage = name.split(".")[1]
        return ("dynarag", "run" if stage == "pipeline" else ALIASES.get(stage, stage), *rest)
    return (name, *rest)


SHOWN = shown()
STAGES = set(summaries())


# ---------------------------------------------------------------------------- parsing them


@pytest.fixture(autouse=True, scope="module")
def once():
    """Config files, sources and types of fields are read once: they are the same every time."""
    hints, files = typing.get_type_hints, read_config
    known: dict[tuple, dict] = {}

    def hints_once(obj, globalns=None, localns=None, include_extras=False):
        if globalns is not None or localns is not None or not dataclasses.is_dataclass(obj):
            return hints(obj, globalns, localns, include_extras)
        if (obj, include_extras) not in known:
            known[obj, include_extras] = hints(obj, include_extras=include_extras)
        return dict(known[obj, include_extras])

    def file_once(path):
        if path not in known:
            known[path] = files(path)
        run, stages = known[path]
        return run, dict(stages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typing, "get_type_hints", hints_once)
        patch.setattr(options, "read_config", file_once)
        patch.setattr(inspect, "getsource", functools.cache(inspect.getsource))
        yield


class Parsed(Exception):
    """A benchmark has read its options, and need not go on."""


def check(command: tuple[str, ...]) -> None:
    """Parse a command as its program would.

    Raises:
      InputError, SystemExit: the program would refuse it.
    """
    name, *rest = command
    if name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        unknown = [word for word in rest if "=" not in word and word not in targets]
        assert not unknown, f"make has no target {unknown[0]}"
    elif name.startswith("benchmarks."):
        check_benchmark(name, rest)
    elif name != "dynarag":
        assert name.split(".")[1] in ELSEWHERE, f"there is no {name}"
    elif rest[:1] == ["run"]:
        if rest[1:] and not rest[1].startswith("-"):
            options.load_run(config_of(rest[1], None), rest[2:], "dynarag run")
    else:
        check_dynarag(rest)


def config_of(word: str, one: Program | None) -> Path:
    """The config file, or for a placeholder any that has such a stage."""
    if word not in ELSEWHERE and not word.startswith(("PATH/", "mine")):
        return ROOT / word
    for path in CONFIGS:
        stages = read_config(path)[1]
        if one is None or any(isinstance(stage, one.config) for stage in stages.values()):
            return path
    raise InputError(f"no config file has a {one} stage")


def check_stage(one: Program, arguments: list[str], name: str = "") -> None:
    if arguments[-1:] == ["..."] or arguments[:1] in (["--help"], ["-h"]):
        arguments = [word for word in arguments if word.startswith("--")]
        assert arguments in ([], ["--help"]), "options before '...' are not checked"
        return
    if not one.in_a_run:
        options.parse(one.config(), arguments, prog=one.name)
    elif not arguments:
        pass  # its name alone
    elif not arguments[0].startswith("-"):
        path = config_of(arguments[0], one)
        stages = read_config(path)[1]
        if not name and one.name not in stages and "--stage" not in arguments:
            fitting = [key for key, stage in stages.items() if isinstance(stage, one.config)]
            if arguments[0] in ELSEWHERE:
                name = fitting[0]
        options.load_stage(path, one, arguments[1:], one.name, name)
    else:
        assert one.config_optional, f"{one.name} needs a config file"
        options.load_without_config(one, arguments, one.name)


def check_dynarag(rest: list[str]) -> None:
    if not rest or rest[0] in ELSEWHERE or rest[0] in ("--help", "--version"):
        return
    if rest[0] == "--completion":
        assert rest[1] in options.SHELLS or "|" in rest[1]
    elif rest[0] == "new" and len(rest) > 1:
        options.parse(NewConfig(), rest[2:], prog="dynarag new")
    elif rest[0] in COMMANDS:
        assert all(not w.startswith("configs/") or (ROOT / w).is_file() for w in rest)
    elif rest[0] in STAGES or rest[0] in ALIASES:
        check_stage(program(rest[0]), rest[1:])
    else:
        stages = read_config(ROOT / rest[1])[1] if len(rest) > 1 else {}
        assert rest[0] in stages, f"dynarag has no stage '{rest[0]}'"
        check_stage(program_of(rest[0], stages[rest[0]]), rest[1:], rest[0])


def check_benchmark(name: str, arguments: list[str]) -> None:
    assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), f"there is no {name}"
    module = importlib.import_module(name)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [name, *arguments])
        if not re.search(r"ArgumentParser\(|tyro\.cli\(", Path(module.__file__ or "").read_text()):
            assert not arguments, f"{name} takes no options"
            return
        with pytest.raises(Parsed):
            module.main()


@pytest.mark.parametrize("command", SHOWN, ids=" ".join)
def test_a_command_that_is_shown_is_understood(command):
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), redirect_stdout(io.StringIO()):
            check(command)
        return
    except SystemExit as stop:
        if not stop.code:
            return
        wrong = complaint.getvalue()
    except (InputError, AssertionError) as error:
        wrong = str(error)
    pytest.fail(f"{', '.join(SHOWN[command])}: {' '.join(command)}\n{wrong}", pytrace=False)


def test_commands_are_found_where_they_stand():
    """In code blocks, quotes, spans, over several lines, behind other programs and in variables."""
    page = """
Say `python -m train.label
CONFIG` or `dynarag report CONFIG`; make sure.

    # a comment
    python -m train.sft C.py --a 1 \\
        --b 2 > log
    cd x && make quickstart
    RUN="C.py --c 3"
    srun --nodes 2 .venv/bin/python -m train.dpo $RUN
    on all "cd $HERE && python -m eval.evaluate C.py --d '4 5'"   # six
"""
    found = [command for block in blocks(page) for command in commands(block)]
    assert found == [
        ["train.sft", "C.py", "--a", "1", "--b", "2"],
        ["make", "quickstart"],
        ["train.dpo", "C.py", "--c", "3"],
        ["eval.evaluate", "C.py", "--d", "4 5"],
        ["train.label", "CONFIG"],
        ["dynarag", "report", "CONFIG"],
    ]


@pytest.mark.parametrize(
    "command",
    [
        "train.sft configs/quickstart.py --optimizer.learning_rat 1",
        "train.sft configs/quickstart.py --steps many",
        "train.sft configs/nowhere.py",
        "train.nothing configs/quickstart.py",
        "train.pipeline configs/quickstart.py --steps 3",
        "dynarag nothing configs/quickstart.py",
        "dynarag sft --steps 3",
        "make everything",
        "benchmarks.padding a.jsonl --no-such-option",
        "eval.score --question q.jsonl",
    ],
)
def test_what_a_program_would_refuse_is_found(command):
    with redirect_stderr(io.StringIO()), pytest.raises((InputError, SystemExit, AssertionError)):
        check(normal(command.split()))


def test_enough_commands_are_checked():
    """A change of the pages' form must not leave them unread."""
    pages = {file for files in SHOWN.values() for file in files}
    assert len(SHOWN) > 80
    assert {"README.md", "docs/running-on-pods.md", "docs/benchmarks.md"} <= pages
    with_commands = [path for path in CODE if path.startswith(("train/", "eval/"))]
    assert {p for p in with_commands if not p.endswith("__init__.py")} <= pages


def test_the_api_pages_name_what_is_there():
    """``make docs`` would fail; this says so without it."""
    pages = sorted((ROOT / "docs/api").glob("*.md"))
    names = [n for page in pages for n in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    assert len(names) > 50
    for name in names:
        path = ROOT / name.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").is_file():
            continue
        module, _, defined = name.rpartition(".")
        text = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert re.search(rf"^(class|def) {defined}\b", text, re.M), f"there is no {name}"
    shown = (ROOT / "mkdocs.yml").read_text()
    assert not [page.name for page in pages if f"api/{page.name}" not in shown]
