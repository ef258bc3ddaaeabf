"""Config files and overrides: what they give, and what every mistake in them says."""

from __future__ import annotations

import re
import sys
import types

import pytest

from dynarag_jax.config import Mesh, Run
from dynarag_jax.launch.exit_codes import guard
from dynarag_jax.launch.options import load_config, spelled_out
from dynarag_jax.launch.pipeline import main as main_pipeline
from dynarag_jax.launch.program import main


def one_line(text: str) -> str:
    """The only line of an error message."""
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    return text.removeprefix("error: ").strip()


# ---------------------------------------------------------------------------- config files


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps=4)", "steps=4", r"bad\.py:10: closing parenthesis"),
        ("steps=4", "lernrate=4", r"bad\.py:7: Count has no .*'lernrate' .*'learning_rate'\?\)"),
        ("steps=4", "pace=Pace(ordre='up')", r"bad\.py:7: Pace has no field 'ordre' .*'order'"),
        ("steps=4", "steps='4'", r"bad\.py: count\.steps must be an int, found '4'"),
        ("steps=4", "steps=True", r"bad\.py: count\.steps must be an int, found True"),
        ("steps=4", "learning_rate='x'", r"count\.learning_rate must be a float, found 'x'"),
        ("steps=4", "tops=[1]", r"count\.tops must be tuple\[int, \.\.\.\], found \[1\]"),
        ("steps=4", "tops=(1, 'x')", r"count\.tops\[1\] must be an int, found 'x'"),
        ("steps=4", "names={'a': 1}", r"count\.names\['a'\] must be a str, found 1"),
        ("steps=4", "pace=Pace(order='dwn')", r"pace\.order must be one of 'up', 'down', found 'd"),
        ("steps=4", "pace=Pace(order='dwn')", r"found 'dwn' \(did you mean 'down'\?\)"),
        ("steps=4", "pace=Pace(rate=-1)", r"bad\.py:7: ValueError: rate = -1 must be positive"),
        ("steps=4", "other=3", r"count\.other must be Pace \| None, found 3"),
        ("steps=4", "other=Pace(order=3)", r"count\.other\.order must be one of 'up', 'down'"),
        ("run =", "rum =", r"bad\.py: does not define 'run' \(did you mean 'rum'\?\)"),
        ("stages =", "stage =", r"bad\.py: does not define 'stages' \(did you mean 'stage'\?\)"),
        ("stages = {", "stages = {} and {", "'stages' must be a dict of stages, found {}"),
        ("run = Run", "run = dict", "'run' must be a Run, found {'directory'"),
        ("import Run", "import Rum", r"bad\.py:3: .*config' has no 'Rum' \(did you mean 'Run'\?\)"),
        ("= Run(", "= Rum(", r"bad\.py:5: name 'Rum' is not defined \(did you mean 'Run'\?\)"),
        ('directory="runs/a", ', "", r"bad\.py:5: Run needs 'directory'"),
        ("runs/a", "", r"bad\.py:5: run\.directory is empty"),
        ('"count":', '"run":', "stage name 'run' must be"),
        ('"count":', '"a b":', "stage name 'a b' must be"),
        ("Report(),", "Report,", "stage 'report' must be a stage's configuration, found <class"),
        ("run =", "import nothing_like_it; run =", r"bad\.py:5: ModuleNotFoundError: No module"),
        ("run =", "1 / 0; run =", r"bad\.py:5: ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(place, capsys, old, new, expected):
    text = (place / "good.py").read_text()
    assert old in text
    (place / "bad.py").write_text(text.replace(old, new))
    assert guard(lambda: load_config("bad.py")) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith("bad.py:")
    assert re.search(expected, line), line


def test_a_missing_config_file_names_the_nearest(place, capsys):
    assert guard(lambda: load_config("god.py")) == 2
    line = one_line(capsys.readouterr().err)
    assert line == "god.py: no such config file (did you mean 'good.py'?)"
    assert guard(lambda: load_config(place)) == 2
    assert "found a directory" in one_line(capsys.readouterr().err)
    (place / "q.jsonl").write_text("{}\n")
    assert guard(lambda: load_config("q.jsonl")) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith("q.jsonl: the config file comes first, and is Python"), line


def test_a_good_config_file_gives_its_stages_in_order(place):
    run, stages = load_config("good.py")
    assert run == Run(directory="runs/a", compilation_cache="off")
    assert list(stages) == ["count", "report", "again"]
    assert stages["count"].steps == 4


# ---------------------------------------------------------------------------- overrides


def test_overrides_reach_every_depth_and_keep_their_types(place):
    run, stages = load_config(
        "good.py",
        ["--run.seed", "7", "--run.mesh.fsdp=2", "--count.pace.rate", "2e-5", "--count.tops", "5",
         "6", "7", "--count.loud", "--count.names.behavior cloning", "b", "--again.steps",
         "9", "--count.learning-rate", "3"],
    )  # fmt: skip
    count = stages["count"]
    assert (run.seed, run.mesh) == (7, Mesh(fsdp=2))
    assert (count.pace.rate, count.tops, count.loud) == (2e-5, (5, 6, 7), True)
    assert count.names == {"behavior cloning": "b"}
    assert isinstance(count.learning_rate, float)
    assert (count.steps, stages["again"].steps) == (4, 9)


def words(text: str) -> str:
    """What tyro says in its box, as one line."""
    return " ".join(re.sub(r"[│╭╮╰╯─]|-{5,}", " ", text).split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lernrate", "1"], r"Unrecognized options: --lernrate"),
        (["--rate", "1"], r"--rate.*Perhaps you meant:.* --pace\.rate FLOAT"),
        (["--run.sed=1"], r"--run\.sed.*Perhaps you meant: --run\.seed INT"),
        (["--zzzzzz", "1"], r"Unrecognized options: --zzzzzz.* --help"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int.*'many'"),
        (["--steps"], "Missing value for argument '--steps'"),
        (["--pace.order", "sideways"], "invalid choice 'sideways' for argument '--pace.order'"),
        (["--pace.rate", "-1"], r"Error parsing count\.pace: rate = -1.0 must be positive"),
        (["--run.seed", "-1"], r"run\.seed = -1 must lie in"),
        (["--loud", "maybe"], "Unrecognized options: maybe"),
        (["--steps", "3", "4"], "Unrecognized options: 4"),
        (["--stage"], "argument --stage: expected one argument"),
        (["--stage", "agian"], r"no stage 'agian' \(did you mean 'again'\?\).*count, again"),
        (["--stage=report"], "stage 'report' is a Report stage"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(place, counter, capsys, arguments, expected):
    with pytest.raises(SystemExit) as stop:
        main(counter(lambda: pytest.fail("ran")), ["good.py", *arguments])
    assert stop.value.code == 2
    assert re.search(expected, words(capsys.readouterr().err))
    assert not (place / "runs").exists()


@pytest.fixture
def counter(counting):
    """The ``run`` of a stage Count that does something else."""

    def make(work=lambda: None, config=counting.Count):
        def run(context, stage):
            work()

        run.__annotations__ = {"context": object, "stage": config}
        run.__module__ = "count"
        sys.modules["count"] = types.ModuleType("count")
        sys.modules["count"].__file__ = "count.py"
        return run

    return make


def test_a_program_without_its_stage_names_those_it_could_run(place, counting, counter, capsys):
    for arguments, config, expected in [
        (["--stage", "sft"], counting.Count, "--stage runs another Count stage: count, again"),
        (["--stage", "sft"], Run, "it has count, report, again; none is a Run stage"),
        ([], counting.Report, "stage 'count' is a Count stage"),
    ]:
        with pytest.raises(SystemExit):
            main(counter(config=config), ["good.py", *arguments])
        assert expected in one_line(capsys.readouterr().err)
    for arguments in (["--steps", "3"], []):
        with pytest.raises(SystemExit):
            main(counter(), arguments)
        assert "the config file comes first" in one_line(capsys.readouterr().err)
    with pytest.raises(SystemExit) as stop:
        main("sfft", ["good.py"])
    assert stop.value.code == 2
    assert "unknown stage 'sfft' (did you mean 'sft'?)" in one_line(capsys.readouterr().err)


def test_help_lists_fields_with_meaning_and_the_files_own_defaults(place, counter, capsys):
    for arguments, default in [(["good.py", "--help"], "4"), (["--help"], "3")]:
        with pytest.raises(SystemExit) as stop:
            main(counter(), arguments)
        assert not stop.value.code
        text = words(capsys.readouterr().out)
        assert "Count the words of a file." in text
        assert f"--steps INT how far to count (default: {default})" in text
        assert "--pace.rate FLOAT numbers a second (default: 0.5)" in text
        assert "--run.mesh.fsdp INT devices that share each copy's weights" in text
    with pytest.raises(SystemExit) as stop:
        main_pipeline(["good.py", "--help"])
    assert not stop.value.code
    assert "--again.steps INT" in capsys.readouterr().out


def test_a_switch_takes_no_value(place):
    for arguments, loud in [(["--count.loud"], True), (["--count.no-loud"], False), ([], False)]:
        assert load_config("good.py", arguments)[1]["count"].loud is loud


def test_stages_take_prompts_and_types_from_the_run_unless_they_have_their_own(tmp_path):
    (tmp_path / "c.py").write_text(
        "from dynarag_jax.config import Run\n"
        "from dynarag_jax.prompts import PromptConfig\n"
        "from dynarag_jax.stages.evaluate import Evaluate\n"
        "from dynarag_jax.stages.rerank import Rerank\n"
        "run = Run(directory='r', prompts=PromptConfig(ids=7, max_list=5), dtype='bfloat16')\n"
        "stages = {'rerank': Rerank(dtype='float32'), 'evaluate': Evaluate()}\n"
    )
    _, stages = load_config(tmp_path / "c.py")
    assert [(s.prompts.ids, s.dtype) for s in stages.values()] == [(7, "float32"), (7, "bfloat16")]
    given = ["--run.prompts.ids", "9", "--evaluate.prompts.max_list", "3", "--run.dtype", "float32"]
    _, stages = load_config(tmp_path / "c.py", given)
    assert [s.prompts.ids for s in stages.values()] == [9, 9]
    assert [s.prompts.max_list for s in stages.values()] == [5, 3]
    assert stages["evaluate"].dtype == "float32"


def test_one_config_file_begins_with_another(place):
    (place / "second.py").write_text(
        "from dataclasses import replace\n"
        "from dynarag_jax.launch.config_file import base_config\n"
        "good = base_config(__file__, 'good.py')\n"
        "run = replace(good.run, directory='runs/b')\n"
        "stages = good.stages | {'count': replace(good.stages['count'], steps=9)}\n"
    )
    run, stages = load_config("second.py")
    assert (run.directory, stages["count"].steps, stages["again"].steps) == ("runs/b", 9, 2)


def test_lr_is_short_for_the_learning_rate():
    given = ["--lr", "2e-5", "--sft.lr=0.1", "--lr=1", "--lrs", "lr", "--reranker.length", "--lr"]
    rate = "optimizer.learning_rate"
    assert spelled_out(given) == [
        f"--{rate}", "2e-5", f"--sft.{rate}=0.1", f"--{rate}=1", "--lrs", "lr",
        "--reranker.length", f"--{rate}",
    ]  # fmt: skip
    name = "configs/quickstart.py"
    _, stages = load_config(name, ["--sft.lr", "0.125"])
    assert stages["sft"].optimizer.learning_rate == 0.125
