"""Config files and overrides: what they give, and what every mistake in them says."""

from __future__ import annotations

import re

import pytest

from dynarag_jax.config import Mesh, Run
from train.context import Context
from train.options import load_config
from train.program import guard, main, main_pipeline


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
         "6", "7", "--count.loud", "True", "--count.names.behavior cloning", "b", "--again.steps",
         "9", "--count.learning-rate", "3"],
    )  # fmt: skip
    count = stages["count"]
    assert (run.seed, run.mesh) == (7, Mesh(fsdp=2))
    assert (count.pace.rate, count.tops, count.loud) == (2e-5, (5, 6, 7), True)
    assert count.names == {"behavior cloning": "b"}
    assert isinstance(count.learning_rate, float)
    assert (count.steps, stages["again"].steps) == (4, 9)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lernrate", "1"], r"unknown option '--lernrate' \(did you mean '--learning_rate'\?\)"),
        (["--rate", "1"], r"unknown option '--rate' \(did you mean '--pace\.rate'\?\)"),
        (["--run.sed=1"], r"unknown option '--run\.sed' \(did you mean '--run\.seed'\?\)"),
        (["--zzzzzz", "1"], r"unknown option '--zzzzzz'; .* --help lists them"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int.*'many'"),
        (["--steps"], "Missing value for argument '--steps'"),
        (["--pace.order", "sideways"], "invalid choice 'sideways' for argument '--pace.order'"),
        (["--pace.rate", "-1"], "Error parsing pace: rate = -1.0 must be positive"),
        (["--run.seed", "-1"], r"run\.seed = -1 must lie in"),
        (["--loud", "maybe"], "invalid choice 'maybe' for argument '--loud'"),
        (["--steps", "3", "4"], "unexpected argument '4'"),
        (["--stage"], "--stage needs the name of a stage"),
        (["--stage", "agian"], r"no stage 'agian' \(did you mean 'again'\?\).*count, again"),
        (["--stage=report"], "stage 'report' is a Report stage"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(place, counting, capsys, arguments, expected):
    with pytest.raises(SystemExit) as stop:
        main(
            "count",
            counting.Count,
            lambda context, stage: pytest.fail("ran"),
            ["good.py", *arguments],
        )
    assert stop.value.code == 2
    assert re.search(expected, one_line(capsys.readouterr().err))
    assert not (place / "runs").exists()


def test_a_program_without_its_stage_names_those_it_could_run(place, counting, capsys):
    for name, config_type, expected in [
        ("sft", counting.Count, "--stage runs another Count stage: count, again"),
        ("sft", Context, "it has count, report, again; none is a Context stage"),
        ("count", counting.Report, "stage 'count' is a Count stage"),
    ]:
        with pytest.raises(SystemExit):
            main(name, config_type, lambda context, stage: None, ["good.py"])
        assert expected in one_line(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main("count", counting.Count, lambda context, stage: None, ["--steps", "3"])
    assert "the config file comes first" in one_line(capsys.readouterr().err)


def test_help_lists_fields_with_meaning_and_the_files_own_defaults(place, counting, capsys):
    for arguments, default in [(["good.py", "--help"], "4"), (["--help"], "3")]:
        with pytest.raises(SystemExit) as stop:
            main("count", counting.Count, lambda context, stage: None, arguments)
        assert not stop.value.code
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Count the words of a file." in text
        assert f"--steps INT how far to count (default: {default})" in text
        assert "--pace.rate FLOAT numbers a second (default: 0.5)" in text
        assert "--run.mesh.fsdp INT devices that share each copy's weights" in text
    with pytest.raises(SystemExit) as stop:
        main_pipeline(lambda run, stages: pytest.fail("ran"), ["good.py", "--help"])
    assert not stop.value.code
    assert "--again.steps INT" in capsys.readouterr().out
