"""The page in a real browser: its address is its state; keys, steps, hostile texts, changes."""

from __future__ import annotations

import os

import pytest

from benchmarks.browser import Browser, chromium
from dynarag_jax.rollout_records import read_rollouts

from .conftest import HOSTILE

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
READY = "document.querySelector('#rows tbody tr') && document.querySelector('#side h2')"
ROWS = "[...document.querySelectorAll('#rows tbody tr')].map(r => r.dataset.id)"


@pytest.fixture(scope="module")
def browser():
    """One page for all tests of this file."""
    with Browser() as one:
        yield one


def test_a_reader_goes_through_a_run(made, serve, browser):
    _, client = serve(made)
    browser.open(client.url)
    browser.until(READY)
    assert len(browser.evaluate(ROWS)) == 12
    # A search, typed; the address follows.
    browser.press("/", "/")
    browser.type("T3")
    browser.until(f"{ROWS}.length === 1")
    browser.until("location.search.includes('q=T3')")
    browser.press("Escape")
    browser.press("j", "j")
    browser.until("document.querySelector('.passages')")
    # Hostile texts stand there as text, and nothing of them ran.
    assert browser.evaluate("document.querySelector('#side h2').textContent") == HOSTILE
    assert browser.evaluate("document.querySelector('.passages .text').textContent") == HOSTILE
    assert browser.evaluate("window.hacked === undefined && document.querySelector('img') === null")
    # Steps of a sampled list, and their address opens the same again.
    rollout = next(r for r in read_rollouts(made / "rollout/rollouts.jsonl") if r.id == "t3")
    browser.press("s", "s")
    browser.until("document.querySelector('.steps')", 120)
    taken = "document.querySelectorAll('.steps li').length"
    sizes = {len(t.list) + 1 for t in rollout.trajectories}
    assert browser.evaluate(taken) in sizes
    address = browser.evaluate("location.href")
    browser.open("about:blank")
    browser.open(address)
    browser.until("document.querySelector('.steps')", 120)
    assert browser.evaluate("document.querySelector('#q').value") == "T3"
    browser.press("Escape")
    browser.until("document.querySelector('.tile') && !location.search.includes('id=')")
    browser.press("c", "c")
    browser.until(f"{ROWS}.length === 12")
    browser.evaluate("history.back()")
    browser.until(f"{ROWS}.length === 1")
    assert browser.console == []


def test_before_and_after_and_a_cell_of_a_plot(made, serve, browser):
    _, client = serve(made)
    browser.open(client.url + "?set=evaluation")
    browser.until(READY + " && document.querySelectorAll('figure').length === 5")
    label = browser.evaluate(
        "(() => { const a = document.querySelector('figure svg a'); a.dispatchEvent("
        "new MouseEvent('click', {bubbles: true, cancelable: true})); "
        "return a.getAttribute('aria-label'); })()"
    )
    needed, chosen = (int(part.split()[1].strip(",:")) for part in label.split(", ")[:2])
    browser.until(f"location.search.includes('needed={needed}&ak={chosen}')")
    lists = int(label.split(": ")[1].split()[0])
    browser.until(f"{ROWS}.length === {lists}")
    # What the server refuses is said, and mended by clearing.
    browser.open(client.url + "?set=evaluation&change=nothing")
    browser.until("document.querySelector('#status.wrong')")
    assert "must be one of" in browser.evaluate("document.querySelector('#status').textContent")
    browser.press("c", "c")
    browser.until(f"{ROWS}.length === 10 && !document.querySelector('#status.wrong')")
    assert not [line for line in browser.console if "400" not in line]
    browser.console.clear()


def test_the_page_notices_files_that_change(copied, serve, browser, monkeypatch):
    monkeypatch.setattr("dynarag_jax.explore.run_records.LOOK_EVERY", 0.0)
    _, client = serve(copied)
    browser.open(client.url)
    browser.until(READY)
    path = copied / "rollout" / "rollouts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
    os.utime(path, ns=(1, 1))
    browser.until(f"{ROWS}.length === 7", 30)
    assert browser.console == []
