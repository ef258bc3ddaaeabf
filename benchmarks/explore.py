"""How fast `dynarag explore` is, in a real browser: first paint, a filter, one question.

    python -m benchmarks.explore                                 # 100,000 questions, made up
    python -m benchmarks.explore --run runs/quickstart           # a run of one's own
    python -m benchmarks.explore --axe axe.min.js                # accessibility, too

Made-up records have the fields that stages write: ten candidates a question, eight sampled lists
with answers, terms and log-probabilities by token, predictions before and after feedback. Needs
Chromium. Filters are timed in the page, from the change of a field to the table's new rows, each as
often as --rounds says.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.browser import Browser
from dynarag_jax.files import atomic_write
from dynarag_jax.records import Passage, Question, question_to_json
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_to_json

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "x")]
DISTINCT = 4000
READY = "document.querySelector('#rows tbody tr') && document.querySelector('#side h2')"
FILTERS = (
    ("needed k", "needed", "2"),
    ("k", "ak", "3-"),
    ("a word", "q", "ban"),
    ("two words", "q", "bar dun"),
    ("changed", "change", "shorter"),
    ("better", "change", "better"),
    ("sorted", "sort", "-a.value"),
)


# ---------------------------------------------------------------------------- made-up records


def write_repeated(path: Path, records: Sequence[dict[str, Any]], count: int) -> None:
    """Write records until there are ``count``, each time with other ids."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    with atomic_write(path) as stream:
        for first in range(0, count, len(lines)):
            ids = f'"row-{first // len(lines)}-'
            stream.writelines(line.replace('"row-', ids) + "\n" for line in lines[: count - first])


def make_run(root: Path, total: int) -> None:
    """A run of ``total`` questions, as a rollout and an evaluation over one question file.

    A few thousand are made; the others are those again under other ids.
    """
    rng, count = np.random.default_rng(0), min(total, DISTINCT)

    def text(words: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words))

    questions, sizes = [], rng.integers(0, 4, count)
    for i in range(count):
        passages = tuple(
            Passage(f"row-{i}p{j}", text(40), text(2), score=1 / (j + 1)) for j in range(10)
        )
        gold = tuple(f"row-{i}p{j}" for j in rng.permutation(10)[: sizes[i]].tolist())
        questions.append(
            Question(
                f"row-{i}", text(8) + "?", (text(2),), ("short", "paragraph")[i % 2],
                ("bridge", "comparison", "single")[i % 3], passages, gold,
            )
        )  # fmt: skip
    write_repeated(root / "questions.jsonl", [question_to_json(q) for q in questions], total)

    def some_list() -> tuple[int, ...]:
        return tuple(int(x) + 1 for x in rng.permutation(10)[: int(rng.integers(0, 6))])

    def rollout(question: Question) -> dict[str, Any]:
        lists = list(dict.fromkeys(some_list() for _ in range(8)))
        own = []
        for one in lists:
            logps = tuple((-rng.exponential(0.4, 2 * len(one) + 1)).tolist())
            em = float(rng.integers(0, 2))
            own.append(
                Trajectory(
                    one, 1, text(2), {"em": em, "passages": 1 / (1 + len(one))},
                    em + 0.5 / (1 + len(one)), sum(logps), sum(logps), logps, logps,
                )
            )  # fmt: skip
        return rollout_to_json(
            Rollout(question.id, 10, tuple(own), "0" * 16, "0" * 16, "1" * 16, "2" * 16)
        )

    write_repeated(root / "rollout" / "rollouts.jsonl", [rollout(q) for q in questions], total)

    def prediction(system: str, question: Question) -> dict[str, Any]:
        chosen = some_list()
        return {
            "id": question.id, "system": system, "type": question.type, "list": list(chosen),
            "chosen": [question.passages[i - 1].id for i in chosen], "answer": text(2),
            "k": len(chosen), "tokens": 60 * len(chosen), "score": float(rng.integers(0, 2)),
            "set_f1": 0.5, "needed": len(question.gold or ()),
        }  # fmt: skip

    systems = ("before", "after")
    parts = []
    for system in systems:
        part = root / "evaluate" / f"{system}.part"
        write_repeated(part, [prediction(system, question) for question in questions], total)
        parts.append(part)
    with atomic_write(root / "evaluate" / "predictions.jsonl", "wb") as stream:
        for part in parts:
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, stream)
            part.unlink()
    for stage, config in (
        ("rollout", {"class": "SampleRollouts", "samples": 8}),
        ("evaluate", {"class": "Evaluate", "models": {"before": "a", "after": "b"}}),
    ):
        source = {"path": str(root / "questions.jsonl"), "sha256": ""}
        models = {name: {"path": str(root / name), "sha256": ""} for name in systems}
        record = {
            "stage": stage, "config": config, "seed": 0, "run": {"directory": str(root)},
            "inputs": {"questions": source} | models, "starts": ["2026-01-01T00:00:00+00:00"],
        }  # fmt: skip
        (root / stage / "run.json").write_text(json.dumps(record))


# ---------------------------------------------------------------------------- measuring


class Served:
    """``dynarag explore`` as its own process."""

    def __init__(self, root: Path):
        command = [sys.executable, "-m", "eval.explore", str(root), "--port", "0"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout
        found = re.search(r"http://\S+", self._process.stdout.readline())
        assert found, "the explorer did not start"
        self.url = found.group()

    def memory(self) -> float:
        """GiB resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 2**20

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


def spread(values: list[float]) -> str:
    """Median and the range around it."""
    return f"{statistics.median(values):7.0f}   ({min(values):.0f} to {max(values):.0f})"


def paints(browser: Browser, url: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the request to the first paint, and to the questions and plots."""
    first, whole = [], []
    for _ in range(rounds):
        browser.open("about:blank")
        browser.open(url)
        browser.until(f"location.href.startsWith('{url}') && {READY}", 300)
        whole.append(browser.evaluate("performance.now()"))
        browser.until("performance.getEntriesByName('first-contentful-paint').length")
        first.append(
            browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
    return first, whole


CHANGE = """
(async () => {
  const field = document.querySelector('#filters')[NAME];
  const body = document.querySelector('#rows tbody');
  const before = performance.now();
  const seen = new Promise((done) => new MutationObserver((_, self) => {
    self.disconnect(); requestAnimationFrame(() => done(performance.now() - before));
  }).observe(body, {childList: true}));
  field.value = VALUE;
  field.dispatchEvent(new Event('input', {bubbles: true}));
  return await seen;
})()
"""


def filters(browser: Browser, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from a change of a field to the new rows, typing's pause of 120 ms included."""
    times: dict[str, list[float]] = {}
    for name, field, value in FILTERS:
        if not browser.evaluate(f"document.querySelector('#filters')['{field}'].checkVisibility()"):
            continue
        rest = {"change": "any", "sort": "file"}.get(field, "")
        for _ in range(rounds):
            for to in (value, rest):
                script = CHANGE.replace("NAME", repr(field)).replace("VALUE", repr(to))
                times.setdefault(name, []).append(browser.evaluate(script))
            del times[name][-1]  # back to all questions, which the next round begins with
    return times


def question(browser: Browser, rounds: int) -> list[float]:
    """Milliseconds from a click on a question to its candidates."""
    script = """
    (async () => {
      const before = performance.now(), side = document.querySelector('#side');
      const seen = new Promise((done) => new MutationObserver((_, self) => {
        if (!document.querySelector('.passages')) return;
        self.disconnect(); requestAnimationFrame(() => done(performance.now() - before));
      }).observe(side, {childList: true}));
      document.querySelectorAll('#rows a')[PLACE].click();
      return await seen;
    })()
    """
    times = []
    for place in range(rounds):
        times.append(browser.evaluate(script.replace("PLACE", str(place))))
        browser.press("Escape")
        browser.until("document.querySelector('.tile')")
    return times


def faults(browser: Browser, url: str, axe: Path) -> list[str]:
    """What axe finds, of any weight, on the overview and on a question, light and dark."""
    found = []
    for scheme in ("light", "dark"):
        browser.colors(scheme)
        for page, path in (("overview", ""), ("question", "?id=")):
            browser.open(url)
            browser.until(READY)
            if path:
                browser.press("j", "j")
                browser.until("document.querySelector('.passages')")
            browser.evaluate(axe.read_text() + ";1")
            rows = browser.evaluate(
                "axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes.length]))"
            )
            found += [f"{scheme} {page}: {name}, {impact}, {n} places" for name, impact, n in rows]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--run", type=Path, help="a run's directory, in place of made-up records")
    parser.add_argument("--keep", type=Path, help="where made-up records go and stay")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.run or given.keep or Path(temporary) / "run"
        if given.run is None and not (root / "evaluate" / "run.json").exists():
            print(f"making {given.questions:,} questions ...", flush=True)
            make_run(root, given.questions)
        size = sum(path.stat().st_size for path in root.rglob("*.jsonl"))
        with Served(root) as served, Browser() as browser:
            began = time.monotonic()
            browser.open(served.url)
            browser.until("document.querySelector('header h1')")
            browser.until(READY, 600)
            took = time.monotonic() - began
            print(f"{size / 2**20:,.0f} MiB of records; first look, or kept: {took:.1f} s")
        with Served(root) as served, Browser() as browser:
            began = time.monotonic()
            browser.open(served.url)
            browser.until(READY, 600)
            print(f"started again: {time.monotonic() - began:.1f} s to the questions")
            found = browser.evaluate("document.querySelector('#found').textContent")
            first, whole = paints(browser, served.url, given.rounds)
            print(f"{found}; median of {given.rounds} (lowest to highest), milliseconds")
            print(f"{'first paint':28}{spread(first)}")
            print(f"{'questions and plots':28}{spread(whole)}")
            for name, times in filters(browser, given.rounds).items():
                print(f"{'filter: ' + name:28}{spread(times)}")
            print(f"{'one question in full':28}{spread(question(browser, given.rounds))}")
            print(f"server: {served.memory():.2f} GiB")
            if given.screenshots:
                given.screenshots.mkdir(parents=True, exist_ok=True)
                for scheme in ("light", "dark"):
                    browser.colors(scheme)
                    browser.screenshot(given.screenshots / f"overview-{scheme}.png")
            if given.axe:
                rows = faults(browser, served.url, given.axe)
                print("\n".join(rows) or "axe: no faults")
            assert not browser.console, browser.console


if __name__ == "__main__":
    main()
