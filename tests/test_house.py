"""The house's own rules: which room may use which, sizes, one meaning a name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "dynarag_jax").rglob("*.py"))


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {program}"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_arrows_point_down_and_one_that_does_not_is_named(tmp_path):
    for name in ("dynarag_jax", "train", "eval", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert lint(tmp_path).returncode == 0, lint(tmp_path).stdout
    # A copy of one room's folder, with an arrow up.
    (tmp_path / "dynarag_jax").unlink()
    (tmp_path / "dynarag_jax").mkdir()
    for path in (ROOT / "dynarag_jax").iterdir():
        (tmp_path / "dynarag_jax" / path.name).symlink_to(path)
    errors = tmp_path / "dynarag_jax" / "errors.py"
    text = errors.read_text()
    errors.unlink()
    errors.write_text(text + "\nfrom dynarag_jax import files\n")
    wrong = lint(tmp_path)
    assert wrong.returncode == 1
    assert "dynarag_jax.errors is not allowed to import dynarag_jax.files" in wrong.stdout


def test_no_file_is_long():
    folders = ("dynarag_jax", "train", "eval", "configs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_no_two_classes_have_one_name():
    where = defaultdict(list)
    for path in LIBRARY:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_programs_hold_no_code_of_their_own():
    for path in [*(ROOT / "train").glob("*.py"), *(ROOT / "eval").glob("*.py")]:
        body = ast.parse(path.read_text()).body
        code = [line for node in body[1:] for line in ast.unparse(node).splitlines()]
        assert len(code) <= 15, path
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in body), path
