"""Score invented pairs with the benchmarks' own scripts; what they say goes to scores.json.gz.

    python tests/metrics/official/make.py DIRECTORY

DIRECTORY holds the scripts, which are not part of this project; README.md names their repositories
and commits. The pairs are made here, from invented words and a seed.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import random
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
WORDS = (
    "the a an The AN theatre orlen Orlen, ORLEN Vask's yes no noanswer No. 1,000 $5 U.S. ‘quoted’ "
    "`tick` under_score Café naïve — – … 東京 the-end a.b.c runs running nationality rock-n-roll . "
    "It’s Straße 3.14 Maro-Tel and of in"
).split(" ")


def text(rng: random.Random, longest: int, least: int = 0) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, longest)))


def disturbed(rng: random.Random, original: str) -> str:
    """A prediction made from a reference by losing, doubling and respelling words."""
    words = original.split(" ")
    for _ in range(rng.randint(0, 3)):
        i = rng.randrange(len(words) + 1)
        words[i : i + rng.randint(0, 1)] = rng.choices(WORDS, k=rng.randint(0, 2))
    return rng.choice([str.upper, str.lower, str.title, str, str])(" ".join(words))


def short_pairs(rng: random.Random, count: int) -> list[dict]:
    pairs = []
    for _ in range(count):
        golds = [text(rng, 5, 1) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.15:
            golds[0] = rng.choice(["yes", "no", "noanswer", "Yes."])
        pairs.append({"prediction": disturbed(rng, rng.choice(golds)), "answers": golds})
    return pairs


def long_pairs(rng: random.Random, count: int) -> list[dict]:
    pairs = []
    for _ in range(count):
        short = [[text(rng, 2, 1) for _ in range(rng.randint(1, 2))] for _ in range(3)]
        found = [rng.choice(pair) for pair in short if rng.random() < 0.6]
        longs = [f"{text(rng, 12, 3)} {f}. {text(rng, 12, 3)}." for f in (*found, text(rng, 3))][:2]
        longs = longs if len(longs) == 2 else longs * 2
        words = [*found, *(text(rng, 6) for _ in range(3))]
        rng.shuffle(words)
        prediction = rng.choice([" ".join(words), disturbed(rng, longs[0])])
        pairs.append({"prediction": prediction, "short_answers": short, "answers": longs})
    return pairs


def load(directory: Path, name: str, **stubs: types.ModuleType) -> types.ModuleType:
    """A script as a module; ``stubs`` stand for what it imports and its metrics do not use."""
    before = {key: sys.modules.get(key) for key in stubs}
    sys.modules.update(stubs)
    try:
        spec = importlib.util.spec_from_file_location(f"official_{name}", directory / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for key, value in before.items():
            sys.modules.pop(key) if value is None else sys.modules.__setitem__(key, value)
    return module


def main(directory: Path) -> None:
    rng = random.Random(20)
    short, long = short_pairs(rng, 2500), long_pairs(rng, 700)
    empty = types.ModuleType("empty")
    scores: dict[str, list[float]] = {}

    hotpot = load(directory, "hotpot", ujson=json)
    scores["hotpotqa/em"] = [
        float(hotpot.exact_match_score(p["prediction"], p["answers"][0])) for p in short
    ]
    scores["hotpotqa/f1"] = [hotpot.f1_score(p["prediction"], p["answers"][0])[0] for p in short]

    two = load(directory, "twowiki", ujson=json)
    both = []
    for p in short:
        total = dict.fromkeys(("em", "f1", "prec", "recall"), 0.0)
        two.update_answer(total, p["prediction"], p["answers"])
        both.append(total)
    scores["2wikimultihopqa/em"] = [float(t["em"]) for t in both]
    scores["2wikimultihopqa/f1"] = [t["f1"] for t in both]

    utils = types.ModuleType("utils")
    parts = {f"utils.{n}": types.ModuleType(f"utils.{n}") for n in ("dataset_utils", "utils")}
    trivia = load(directory, "triviaqa_evaluation", utils=utils, **parts)
    for name, metric in (("em", trivia.exact_match_score), ("f1", trivia.f1_score)):
        scores[f"triviaqa/{name}"] = [
            float(trivia.metric_max_over_ground_truths(metric, p["prediction"], p["answers"]))
            for p in short
        ]

    metric_module = types.ModuleType("metrics.metric")
    metric_module.Metric = object
    musique = load(
        directory, "musique_answer", **{"metrics": empty, "metrics.metric": metric_module}
    )
    for name, metric in (("em", musique.compute_exact), ("f1", musique.compute_f1)):
        scores[f"musique/{name}"] = [
            float(max(metric(gold, p["prediction"]) for gold in p["answers"])) for p in short
        ]

    kilt_stub, retrieval = types.ModuleType("kilt"), types.ModuleType("kilt.eval_retrieval")
    kilt_stub.kilt_utils, kilt_stub.eval_retrieval = empty, retrieval
    kilt = load(directory, "kilt_eval", kilt=kilt_stub, **{"kilt.eval_retrieval": retrieval})
    scores["eli5/rouge_l_kilt"] = [
        float(
            kilt._metric_max_over_ground_truths(kilt._rougel_score, p["prediction"], p["answers"])
        )
        for p in long
    ]

    alce_utils = load(directory, "alce_utils")
    alce = load(directory, "alce_eval", utils=alce_utils)
    from dynarag_jax.metrics.rouge import split_sentences

    # The learned list of abbreviations is a download of NLTK's; all else is the script's.
    alce.sent_tokenize = split_sentences
    items = [
        {
            "output": p["prediction"],
            "qa_pairs": [{"short_answers": pair} for pair in p["short_answers"]],
            "annotations": [{"long_answer": a} for a in p["answers"]],
        }
        for p in long
    ]
    pairs = [alce.compute_str_em([item]) for item in items]
    scores["asqa/str_em"] = [float(em) / 100 for em, _ in pairs]
    scores["asqa/str_hit"] = [float(hit) / 100 for _, hit in pairs]
    scores["asqa/rouge_lsum"] = [alce.compute_rouge([item]) / 100 for item in items[:150]]

    released = load(directory, "released_metrics")
    from rouge import Rouge

    rouge = Rouge()
    with contextlib.redirect_stdout(io.StringIO()):
        scores["released/match"] = [
            float(released.match("", p["prediction"], p["answers"])) for p in short
        ]
        # Of an empty prediction the script says NaN.
        scores["released/f1"] = [
            float(released.f1(p["prediction"], p["answers"])) if p["prediction"] else 0.0
            for p in short
        ]
        scores["released/em"] = [
            float(
                released.metric_max_over_ground_truths(
                    released.exact_match_score, p["prediction"], p["answers"]
                )
            )
            for p in short
        ]
        scores["released/rouge"] = [
            float(released.rouge(rouge, p["prediction"], p["answers"]))
            if p["prediction"].strip(" .")
            else 0.0
            for p in long
        ]

    rounded = {name: [round(value, 7) for value in values] for name, values in scores.items()}
    document = {"short": short, "long": long, "scores": rounded}
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    (HERE / "scores.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))
    for name, values in rounded.items():
        part = sum(0 < v < 1 for v in values) / len(values)
        print(
            f"{name}: {len(values)} pairs, mean {sum(values) / len(values):.4f}, partial {part:.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
