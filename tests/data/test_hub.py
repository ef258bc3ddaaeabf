"""The hub's own client against a server that speaks its protocol: what a download does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynarag_jax.records import read_questions

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path):
    """Serves MuSiQue's two splits as the hub keeps them; yields its address and what was asked."""
    files: dict[str, bytes] = {}
    for split in ("train", "validation"):
        rows = [
            {
                "id": f"2hop__{split}{i}", "question": f"{split} {i}?", "answer": "a",
                "answer_aliases": ["b"], "answerable": True, "question_decomposition": [],
                "paragraphs": [
                    {"idx": 0, "title": "t", "paragraph_text": f"x{i}", "is_supporting": True}],
            }
            for i in range(3)
        ]  # fmt: skip
        place = tmp_path / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), place)
        files[f"default/{split}/0000.parquet"] = place.read_bytes()
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(self.path.split("?")[0])
            asked.append(path)
            name = next((n for n in files if path.endswith(n)), "")
            if path.startswith("/api/datasets/dgslibisey/MuSiQue"):
                siblings = [{"rfilename": n} for n in [".gitattributes", *files]]
                data = json.dumps({"id": "x", "sha": COMMIT, "siblings": siblings}).encode()
            elif name:
                data = files[name]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def program(place: Path, address: str, name: str, *arguments: str) -> subprocess.CompletedProcess:
    # The client takes its address from the environment when it is imported.
    changed = {
        "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(place / "hub"),
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", f"train.{name}", *arguments],
        cwd=place, env=os.environ | changed, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_benchmark_is_downloaded_and_prepared(hub, tmp_path):
    address, asked = hub
    done = program(tmp_path, address, "prepare", "musique", "--directory", "d")
    assert done.returncode == 0, done.stderr
    assert "d/musique/1.0.0: train 3, validation 3 questions" in done.stderr
    assert any("refs/convert/parquet" in path for path in asked)
    done = program(
        tmp_path, address, "convert_data", "d/musique", "o.jsonl", "--split", "validation"
    )
    assert done.returncode == 0, done.stderr
    questions = read_questions(tmp_path / "o.jsonl")
    assert [q.text for q in questions] == [f"validation {i}?" for i in range(3)]
    assert all(q.gold == (q.passages[0].id,) and q.answers == ("a", "b") for q in questions)


def test_a_dataset_that_the_hub_lacks(hub, tmp_path):
    address, _ = hub
    done = program(tmp_path, address, "prepare", "squad", "--directory", "d")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("error: SQuAD 1.1: cannot be had from the hub (rajpurkar/squad; ")
    assert "name them with --from" in said and not (tmp_path / "d").exists()
