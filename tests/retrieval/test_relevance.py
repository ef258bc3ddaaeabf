"""MonoT5 and cross-encoders over whole questions, against transformers one pair at a time."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import train_bpe
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.embed import passage_text
from dynarag_jax.retrieval.kept_scores import ScoreStore
from dynarag_jax.retrieval.relevance import above, load_scorer, score_once, score_questions

from .conftest import WORDS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)


def save_words(where, special, template, pair=None):
    words = [*special, "true", "false", "Query:", "Document:", "Relevant:", *WORDS]
    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = [(s, table[s]) for s in special if s in f"{template} {pair}"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=named
    )
    tokenizer.save(str(where / "tokenizer.json"))
    return tokenizer, len(words)


@pytest.fixture(scope="module")
def monot5(tmp_path_factory):
    where = tmp_path_factory.mktemp("monot5")
    tokenizer, size = save_words(where, ["<pad>", "<unk>", "</s>"], "$A </s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(where)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=size, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.15 * torch.randn(p.shape)
    model.save_pretrained(where)
    return model.eval(), tokenizer, where


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    where = tmp_path_factory.mktemp("cross")
    tokenizer, size = save_words(
        where, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    )
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=size, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=64, num_labels=1, initializer_range=0.4,
        )
    )  # fmt: skip
    model.save_pretrained(where)
    return model.eval(), tokenizer, where


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(0)
    text = lambda n: " ".join(rng.choice(WORDS, n))  # noqa: E731
    return [
        Question(
            f"q{i}",
            text(4),
            passages=tuple(
                Passage(f"p{j}", text(int(rng.integers(1, 25))), "new cat" if j % 2 else "")
                for j in range(count)
            ),
        )
        for i, count in enumerate((5, 0, 1, 9))
    ]


def pairs_of(questions):
    return [(q.text, f"{p.title} {p.text}".strip()) for q in questions for p in q.passages]


def scores_of(scorer, questions, **settings):
    found = list(score_questions(scorer, questions, **settings))
    assert [q for q, _ in found] == questions
    assert [len(scores) for _, scores in found] == [len(q.passages) for q in questions]
    return np.concatenate([scores for _, scores in found])


def test_monot5_scores_every_candidate(monot5, questions):
    model, tokenizer, where = monot5
    expected = []
    for question, passage in pairs_of(questions):
        ids = tokenizer.encode(f"Query: {question} Document: {passage} Relevant:").ids
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])
            ).logits[0, 0]
        both = [tokenizer.token_to_id(word) for word in ("true", "false")]
        expected.append(float(torch.softmax(logits[both], 0)[0]))
    assert np.ptp(expected) > 0.2
    scorer = load_scorer(where)
    assert scorer.kind == "MonoT5"
    np.testing.assert_allclose(scores_of(scorer, questions), expected, atol=1e-5)
    np.testing.assert_allclose(scores_of(scorer, questions, batch_tokens=64), expected, atol=1e-5)


def test_a_long_passage_is_cut_before_the_word_that_asks(monot5, questions):
    _, tokenizer, where = monot5
    scorer = load_scorer(where, longest=12)
    ((cut, whole),) = scorer.columns([("who", "red " * 30), ("who", "red")])
    words = lambda ids: " ".join(tokenizer.id_to_token(i) for i in ids)  # noqa: E731
    assert words(cut) == f"Query: who Document: {'red ' * 7}Relevant: </s>" and len(cut) == 12
    assert words(whole) == "Query: who Document: red Relevant: </s>"
    assert np.isfinite(scores_of(scorer, questions)).all()


def test_a_cross_encoder_scores_every_candidate(cross_encoder, questions):
    model, tokenizer, where = cross_encoder
    expected = []
    for pair in pairs_of(questions):
        found = tokenizer.encode(*pair)
        with torch.no_grad():
            logit = model(
                input_ids=torch.tensor([found.ids]), token_type_ids=torch.tensor([found.type_ids])
            ).logits[0, 0]
        expected.append(float(torch.sigmoid(logit)))
    assert np.ptp(expected) > 0.2
    scorer = load_scorer(where)
    assert scorer.kind == "cross-encoder"
    np.testing.assert_allclose(scores_of(scorer, questions), expected, atol=1e-5)
    half = scores_of(load_scorer(where, "bfloat16"), questions)
    np.testing.assert_allclose(half, expected, atol=0.05)


def qwen_reranker(where):
    """A tiny Qwen3 with a byte-level tokenizer that knows the reranker's markers and words."""
    train_bpe(["yes no Query Document"], where, 300)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    markers = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.add_tokens(["<think>", "</think>", "yes", "no"])
    tokenizer.save_pretrained(where)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, initializer_range=0.3,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.save_pretrained(where)
    return model, tokenizer


def test_qwen3_reranker_scores_every_candidate_as_its_model_card_does(questions, tmp_path):
    model, tokenizer = qwen_reranker(tmp_path / "model")
    scorer = load_scorer(tmp_path / "model")
    found = {q.id: s for q, s in score_questions(scorer, questions)}
    assert scorer.kind == "Qwen3-Reranker"
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    for question in questions:
        for passage, score in zip(question.passages, found[question.id], strict=True):
            body = (
                f"<Instruct>: {task}\n<Query>: {question.text}\n<Document>: {passage_text(passage)}"
            )
            parts = (
                tokenizer(t, add_special_tokens=False).input_ids for t in (prefix, body, suffix)
            )
            before, middle, behind = parts
            tokens = torch.tensor([[*before, *middle[:512], *behind]])
            with torch.no_grad():
                logits = model(tokens).logits[0, -1, [no, yes]]
            assert score == pytest.approx(float(torch.log_softmax(logits, 0).exp()[1]), abs=1e-5)


def test_the_list_is_what_scores_above_the_threshold_best_first():
    scores = [0.81, 0.8, 0.95, 0.2, 0.95, 0.99]
    assert above(scores, 0.8, 15) == (6, 3, 5, 1)
    assert above(scores, 0.8, 2) == (6, 3)
    assert above(scores, 0.99, 15) == ()
    assert above([], 0.5, 15) == ()


def test_what_scores_no_pairs_is_refused(bert_directory, tmp_path):
    with pytest.raises(InputError, match="'BertModel' scores no pairs of texts here; suppo"):
        load_scorer(bert_directory)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match="'LlamaForCausalLM' scores no pairs"):
        load_scorer(tmp_path)
    with pytest.raises(InputError, match="no such model directory"):
        load_scorer(tmp_path / "nowhere")


def test_scores_are_kept_for_whoever_asks_again(cross_encoder, questions, tmp_path):
    scorer = load_scorer(cross_encoder[-1])
    with ScoreStore(tmp_path, scorer) as store:
        first = score_once(scorer, questions, tmp_path / "first.jsonl", store=store)
    (segment,) = (tmp_path / ".scores").glob("*/*.jsonl")
    assert len(segment.read_text().splitlines()) == sum(bool(q.passages) for q in questions)

    def none(*_):
        raise AssertionError("a pair is scored again")

    idle = dataclasses.replace(scorer, columns=none)
    # Under another id and in another order they are the same texts.
    moved = [
        dataclasses.replace(q, id=f"other-{q.id}", passages=q.passages[::-1]) for q in questions
    ]
    with ScoreStore(tmp_path, idle) as store:
        again = score_once(idle, moved, tmp_path / "again.jsonl", store=store)
    for question in questions:
        assert again[f"other-{question.id}"] == first[question.id][::-1]
    assert list((tmp_path / ".scores").glob("*/*.jsonl")) == [segment]

    # A line that a kill cut off, another text and another scorer are scored.
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-3])
    with ScoreStore(tmp_path, idle) as store:
        assert store.get(questions[-1]) is None
        assert store.get(questions[0]) == first[questions[0].id]
        assert store.get(dataclasses.replace(questions[0], text="who?")) is None
    longer = dataclasses.replace(scorer, longest=scorer.longest - 1)
    with ScoreStore(tmp_path, longer) as store:
        assert store.get(questions[0]) is None
