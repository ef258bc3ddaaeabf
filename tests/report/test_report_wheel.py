"""The page's templates are part of what is installed."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = {path.name for path in (ROOT / "dynarag_jax/report/templates").iterdir()}


def test_a_wheel_holds_the_templates_and_renders_with_them(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build", "--build-base", str(tmp_path / "build")]
    command += ["bdist_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        inside = {Path(name).name for name in archive.namelist() if "report/templates/" in name}
        assert inside == TEMPLATES
        archive.extractall(tmp_path / "installed")
    program = (
        "from dynarag_jax import report; facts = report.RunFacts('c', 0, 1); "
        "assert 'installed' in report.__file__; print(report.render(report.RunReport('A', facts)))"
    )
    page = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "installed",
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert page.startswith("<!DOCTYPE html>") and "No system was evaluated." in page
