"""Small real models to serve: one that writes lists and answers, one that scores pairs."""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
import time
from pathlib import Path

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import PromptConfig

IDS = 12
PROMPTS = PromptConfig(
    style="compact", ids=IDS, max_list=3, rerank_tokens=400, answer_prompt_tokens=200,
    answer_tokens=8,
)  # fmt: skip
WORDS = "where is port q river lies on the sea of arlo bex ada founded who what 0 1 2 3 4 5 6 7 8 9"


@pytest.fixture(scope="session")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A model directory as a run leaves it: what trained it stands in run.json beside it."""
    stage = tmp_path_factory.mktemp("run") / "feedback"
    text = f"question : {WORDS}? passages : [1], [2], [10] None answer :"
    train_bpe([text] * 3, stage / "tokenizer", 300)
    tokenizer = load_tokenizer(str(stage / "tokenizer"))
    cfg = DecoderConfig(
        vocab=-(-len(tokenizer) // 8) * 8, width=16, layers=1, heads=2, kv_heads=2, head_size=8,
        mlp=24, positions=512,
    )  # fmt: skip
    params = decoder.init_params(cfg, jax.random.key(0))
    # Larger than at the start of training, so that lists differ from question to question.
    params = jax.tree.map(lambda x: x * (4.0 if x.ndim > 1 else 1.0), params)
    save_decoder(stage / "model", cfg, params, tokenizer)
    recorded = {"class": "PromptConfig", **dataclasses.asdict(PROMPTS)}
    (stage / "run.json").write_text(json.dumps({"config": {"prompts": recorded}}))
    return stage / "model"


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory) -> Path:
    """A directory of a cross-encoder with one logit, made by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    where = tmp_path_factory.mktemp("cross")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    table = {word: i for i, word in enumerate([*special, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", table["[CLS]"]), ("[SEP]", table["[SEP]"])],
    )
    tokenizer.save(str(where / "tokenizer.json"))
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(table), hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=64, num_labels=1, initializer_range=0.4,
        )
    )  # fmt: skip
    model.save_pretrained(where)
    return where


class Running:
    """A server on a free port, in a thread of this process; its models are real."""

    def __init__(self, served):
        from dynarag_jax.serving.http.app import build_app
        from dynarag_jax.serving.http.run import listening_socket, make_server

        self.served = served
        place = listening_socket("127.0.0.1", 0)
        self.port = place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.said: list[str] = []
        self.server = make_server(served, build_app(served), self.said.append)
        served.work.start(warm=False)
        self.thread = threading.Thread(target=self.server.run, args=([place],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def call(self, method, path, body=None, headers=None, timeout=600):
        """(status, headers, body) of one request; a body that is JSON is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            raw = reply.read()
            kind = reply.headers.get("content-type", "")
            return reply.status, reply.headers, json.loads(raw) if "json" in kind else raw
        finally:
            connection.close()

    def post(self, path, body, **headers):
        """(status, body) of a POST."""
        status, _, found = self.call("POST", path, body, headers)
        return status, found

    def stop(self):
        self.server.stop()
        self.thread.join(timeout=30)
        self.served.work.close()


@pytest.fixture(scope="session")
def start(one_device):
    """``start(model, **options)``: a running server, stopped at the end."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [serve])")
    from dynarag_jax.launch.console import Console
    from dynarag_jax.serving.http.building import build_served
    from dynarag_jax.serving.limits import Limits
    from dynarag_jax.serving.loading import ServedModel

    running: list[Running] = []

    def begin(model, how=None, limits=None, **options) -> Running:
        limits = limits or Limits(drain_seconds=0, request_seconds=600)
        served = build_served(
            str(model), how or ServedModel(batch=4), limits, Console("serve", primary=False),
            devices=one_device, **options,
        )  # fmt: skip
        running.append(Running(served))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def server(start, language_model) -> Running:
    """A language model, served."""
    return start(language_model, name="tiny")


@pytest.fixture(scope="session")
def scoring_server(start, cross_encoder) -> Running:
    """A cross-encoder with a rule, served."""
    from dynarag_jax.serving.loading import ServedModel
    from dynarag_jax.serving.rules import CutOff

    return start(cross_encoder, ServedModel(rule=CutOff("fixed-k", k=3)), name="cross")
