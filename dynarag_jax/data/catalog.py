"""The benchmarks by name: what is asked, what is reported, where the questions come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.records import Task


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: how it is called here, in ``extra["dataset"]`` and on command lines.
      title: how papers call it.
      task: the form of its answers.
      metrics: what is reported, the headline first, by the names of
        ``dynarag_jax/metrics/benchmarks.py``.
      split: the split that papers evaluate on.
      sizes: questions by split, where the protocols state them.
      license: of questions and answers, where its publication states one; "" where unknown here.
      formats: formats of ``dynarag_jax/data/formats.py`` in which it is published.
      hub: repository of the Hugging Face hub that holds it.
      hub_config: folder or prefix of its files there, where there are several.
      hub_splits: split -> name of that split there, where they differ.
      tfds: name in the TFDS catalogue; "" where it is in none.
      note: what to know before comparing numbers.
    """

    name: str
    title: str
    task: Task
    metrics: tuple[str, ...]
    split: str
    formats: tuple[str, ...]
    hub: str
    hub_config: str = ""
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    license: str = ""
    tfds: str = ""
    note: str = ""


_ALL = (
    Benchmark(
        "nq", "Natural Questions (open)", "short", ("em", "f1"), "validation",
        ("nq_open", "contexts", "dpr", "kilt", "flashrag"), "google-research-datasets/nq_open",
        sizes={"validation": 3610}, license="CC BY-SA 3.0", tfds="natural_questions_open",
        note="the literature's test set of 3,610 is the published validation split",
    ),
    Benchmark(
        "triviaqa", "TriviaQA", "short", ("em", "acc"), "validation",
        ("triviaqa", "contexts", "dpr", "kilt", "flashrag"), "mandarjoshi/trivia_qa",
        hub_config="unfiltered.nocontext", tfds="trivia_qa",
        note="its own normalizer; golds are NormalizedAliases and HumanAnswers",
    ),
    Benchmark(
        "hotpotqa", "HotpotQA", "short", ("em", "f1"), "validation",
        ("hotpotqa", "kilt", "contexts", "flashrag"), "hotpotqa/hotpot_qa",
        hub_config="distractor", sizes={"validation": 7405}, license="CC BY-SA 4.0",
    ),
    Benchmark(
        "2wikimultihopqa", "2WikiMultihopQA", "short", ("em", "f1"), "dev",
        ("2wikimultihopqa", "contexts", "flashrag"), "xanhho/2WikiMultihopQA",
        license="Apache-2.0",
    ),
    Benchmark(
        "asqa", "ASQA", "paragraph", ("str_em", "rouge_lsum"), "dev", ("asqa",), "din0s/asqa",
        license="Apache-2.0", tfds="asqa", note="the paper calls STR-EM 'EM'",
    ),
    Benchmark(
        "fever", "FEVER", "label", ("accuracy",), "validation",
        ("fever", "kilt", "contexts"), "facebook/kilt_tasks", hub_config="fever",
        note="three labels; KILT's files hold two of them",
    ),
    Benchmark(
        "eli5", "ELI5", "paragraph", ("rouge_l",), "validation",
        ("kilt", "eli5", "contexts"), "facebook/kilt_tasks", hub_config="eli5",
        note="name the ROUGE implementation beside the number",
    ),
    Benchmark(
        "popqa", "PopQA", "short", ("containment", "em"), "test", ("popqa", "contexts", "flashrag"),
        "akariasai/PopQA",
    ),
    Benchmark(
        "musique", "MuSiQue", "short", ("em", "f1"), "validation",
        ("musique", "flashrag"), "dgslibisey/MuSiQue", license="CC BY 4.0",
    ),
    Benchmark(
        "squad", "SQuAD 1.1", "short", ("em", "f1"), "validation", ("squad", "dpr"),
        "rajpurkar/squad", sizes={"validation": 10570}, license="CC BY-SA 4.0", tfds="squad",
    ),
)  # fmt: skip

BENCHMARKS: Mapping[str, Benchmark] = {each.name: each for each in _ALL}

ALIASES: Mapping[str, str] = {
    "natural_questions": "nq",
    "nq_open": "nq",
    "trivia_qa": "triviaqa",
    "hotpot": "hotpotqa",
    "hotpot_qa": "hotpotqa",
    "2wiki": "2wikimultihopqa",
    "2wikimqa": "2wikimultihopqa",
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name or alias; InputError naming the nearest where there is none."""
    key = name.strip().lower().replace("-", "_")
    found = BENCHMARKS.get(ALIASES.get(key, key))
    if found is None:
        known = [*BENCHMARKS, *ALIASES]
        raise InputError(
            f"no benchmark '{name}'{nearest(key, known)}; there are {', '.join(BENCHMARKS)}"
        )
    return found
