"""Nothing finished is ever lost: results made anew, failed, killed and restored in any order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch import cli
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.previous import previous, restore
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.status import run_status
from dynarag_jax.stages.gather import Gather


class Killed(BaseException):
    """As a SIGKILL would have it: nothing of ours runs after it."""


def attempt(root: Path, source: str, end: str, yes: bool = True, keep: int = 2) -> bool:
    """Make the stage from ``source``, and end as told: well, failed early or late, or killed."""
    run = Run(str(root), keep_previous=keep)
    context = Context(run, {"gather": Gather(source=source)}, "gather", lambda question: yes)

    def body(context: Context, stage: Gather) -> None:
        context.manifest(inputs={"source": root.parent / "input.txt"})
        if end == "wrong input":
            raise InputError("the input is wrong")
        (context.begin() / "made.txt").write_text(source)
        if end != "well":
            raise Killed if end == "killed" else RuntimeError(end)

    try:
        return run_stage(context, body)
    except Killed:
        # What a kill leaves: the record says running, and the lock is free.
        record = root / "gather" / "run.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "running"}))
        return False
    except (InputError, RuntimeError):
        return False


def finished(root: Path) -> dict[str, str]:
    """What stands finished, by directory."""
    return {
        path.parent.name: (path.parent / "made.txt").read_text()
        for path in root.glob("gather*/done.json")
    }


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["well", "wrong input", "late", "killed"])
        ),
        st.tuples(st.just("restore"), st.integers(0, 6)),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 5))
def test_a_finished_result_is_never_lost(tmp_path_factory, steps, keep):
    place = tmp_path_factory.mktemp("x")
    (place / "input.txt").write_text("in")
    root = place / "run"
    for source, how in steps:
        before = finished(root)
        if source == "restore":
            try:
                restore(root, "gather", how, lambda text: None)
            except InputError:
                assert not root.exists() or how not in previous(root, "gather") or not how
            assert sorted(finished(root).values()) == sorted(before.values())
            continue
        new = attempt(root, source, how, keep=keep)
        after = finished(root)
        if not new:
            # Nothing finished has gone; it may have moved.
            assert sorted(after.values()) == sorted(before.values())
            continue
        assert after["gather"] == source
        # Only the oldest beyond the bound go, and only now that a new one has finished.
        lost = len(before) + 1 - len(after)
        assert lost == (max(0, len(before) - keep) if keep else 0)
    shutil.rmtree(place)


def test_an_attempt_that_finds_its_input_wrong_moves_nothing(tmp_path, capsys):
    (tmp_path / "input.txt").write_text("in")
    root = tmp_path / "run"
    assert attempt(root, "a", "well")
    for _ in range(2):
        assert not attempt(root, "b", "wrong input")
    assert finished(root) == {"gather": "a"}
    assert not previous(root, "gather")
    # One that fails once it has written sets the finished one aside, and the next does not harm it.
    for _ in range(2):
        assert not attempt(root, "b", "late")
        assert not attempt(root, "c", "late")
    assert finished(root) == {"gather.previous-1": "a"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["restore", str(root), "gather"])
    assert stop.value.code == 0
    assert finished(root) == {"gather": "a"}
    assert "is again what stood in" in capsys.readouterr().err


def test_the_oldest_are_removed_beyond_the_bound_and_the_log_says_so(tmp_path, capsys):
    (tmp_path / "input.txt").write_text("in")
    root = tmp_path / "run"
    for source in "abcd":
        assert attempt(root, source, "well")
    said = capsys.readouterr().err
    assert f"removed {root}/gather.previous-1" in said and "run.keep_previous = 2" in said
    assert finished(root) == {"gather": "d", "gather.previous-2": "b", "gather.previous-3": "c"}


def test_what_took_long_is_made_anew_only_with_consent(tmp_path, capsys):
    (tmp_path / "input.txt").write_text("in")
    root = tmp_path / "run"
    assert attempt(root, "a", "well")
    done = root / "gather" / "done.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"seconds": 11520.0}))
    assert not attempt(root, "b", "well", yes=False)
    assert finished(root) == {"gather": "a"}
    assert "what stands took 3:12:00" in capsys.readouterr().err
    assert attempt(root, "b", "well", yes=True)
    assert finished(root) == {"gather": "b", "gather.previous-1": "a"}


def test_status_says_what_stands_and_what_would_be_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("in")
    Path("c.py").write_text(
        "from dynarag_jax.config import Run\n"
        "from dynarag_jax.stages import Gather, Report\n"
        "run = Run('run')\n"
        "stages = {'gather': Gather(source='a'), 'report': Report()}\n"
    )
    assert [s.state for s in run_status("c.py")[1]] == ["not begun", "not begun"]
    with pytest.raises(InputError, match="no such run"):
        run_status("run")
    assert attempt(Path("run"), "b", "well")
    assert attempt(Path("run"), "a", "well")
    (one, other) = run_status("c.py")[1]
    assert (one.state, one.previous, other.state) == ("done", (1,), "not begun")
    assert one.size > 0 and one.seconds is not None
    Path("input.txt").write_text("other")
    assert run_status("c.py")[1][0].reason == "input 'source' changed"
    assert run_status("run")[1][0].state == "to be made anew"
    Path("input.txt").write_text("in")
    Path("c.py").write_text(Path("c.py").read_text().replace("'a'", "'c'"))
    (one, _) = run_status("c.py")[1]
    assert (one.state, one.reason) == ("to be made anew", "source was 'a' and is 'c'")
    with pytest.raises(SystemExit) as stop:
        cli.main(["status", "c.py"])
    assert stop.value.code == 0
    assert "to be made anew" in capsys.readouterr().out
    # Looked at from elsewhere.
    monkeypatch.chdir("/")
    (one,) = run_status(str(tmp_path / "run"))[1]
    assert (one.name, one.state) == ("gather", "done")


@pytest.mark.parametrize("arguments", [["status"], ["restore", "x"], ["restore", "x", "y", "z"]])
def test_wrong_commands_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
