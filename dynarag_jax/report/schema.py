"""What a report is made of: plain data, filled by the programs, read by the page and the table.

Scores (EM, set F1) are fractions of 1 here and percent on the page. Everything optional may be left
out; the page then leaves out that part or shows a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import shuffled_name
from dynarag_jax.metrics.intervals import Difference, Interval

Role = Literal["cloning", "feedback", "shuffled", "fixed", "none", "oracle", "other"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class RunFacts:
    """How the run was made.

    Attributes:
      config: name of the configuration.
      seed: the random seed.
      questions: number of questions evaluated.
      candidates: passages shown for each question, or None where it varies.
      needed_mean_k: mean number of passages a question really needs; None where unknown.
      reward: the reward as a formula in words (``RewardWeights.describe()``).
      seconds: wall-clock seconds by stage, in order.
      peak_memory_bytes: highest resident memory of any stage.
      versions: package versions by name.
      command: the command that made the run.
    """

    config: str
    seed: int
    questions: int
    candidates: int | None = None
    needed_mean_k: float | None = None
    reward: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Curve:
    """One panel of lines over the steps of one stage.

    All series of a panel share its y axis, so quantities of different units or sizes belong in
    panels of their own.

    Attributes:
      stage: the stage's name, the panel's title.
      y_label: what the y axis shows, with its unit (``loss (nats per token)``).
      steps: x, increasing.
      series: y by name, as long as ``steps``; None or a NaN leaves a gap.
      x_label: what the x axis shows.
    """

    stage: str
    y_label: str
    steps: Sequence[float]
    series: Mapping[str, Sequence[float | None]]
    x_label: str = "training step"

    def __post_init__(self) -> None:
        for name, values in self.series.items():
            if len(values) != len(self.steps):
                raise InputError(
                    f"report: curve '{self.stage}', series '{name}' has {len(values)} values "
                    f"for {len(self.steps)} steps"
                )


@dataclass(frozen=True)
class KMatrix:
    """Questions by needed k (rows) and chosen k (columns): ``counts[needed][chosen]``.

    ``metrics.ranking.size_matrix`` makes the counts.
    """

    title: str
    counts: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.counts}
        if len(widths) > 1:
            raise InputError(f"report: matrix '{self.title}' has rows of {sorted(widths)} columns")
        if any(count < 0 for row in self.counts for count in row):
            raise InputError(f"report: matrix '{self.title}' holds a negative count")


@dataclass(frozen=True)
class RankRow:
    """Where the needed passages stand, over the questions that need equally many.

    Attributes:
      needed: passages that each of these questions needs.
      questions: how many they are.
      at: ``at[i]`` of them have a needed passage at rank i + 1 of the candidates.
      absent: needed passages that are no candidates, over all of these questions.
    """

    needed: int
    questions: int
    at: Sequence[int]
    absent: int = 0


@dataclass(frozen=True)
class SystemRow:
    """One system's scores over the same questions, each a mean with its interval.

    Attributes:
      name: as shown (``behavior cloning``, ``feedback, round 1``, ``top 3``).
      role: what it is; decides its mark and color. The headline compares the ``cloning`` row with
        the last ``feedback`` row; ``fixed`` rows are joined by a line; a ``shuffled`` row is that
        of another system with the candidates in random order, named after it (``shuffled_name``).
      answer: the answer metric (EM), a fraction of 1.
      set_f1: F1 of the chosen against the needed set, a fraction; None where unknown.
      mean_k: passages read for a question.
      tokens: passage tokens read by the generator for a question; None where not counted.
      thought_tokens: written before a list; None where the system does not think.
      k_sd: standard deviation of k over questions, where known.
      failed: questions that failed and count as 0.
    """

    name: str
    role: Role
    answer: Interval
    set_f1: Interval | None
    mean_k: Interval
    tokens: Interval | None = None
    thought_tokens: Interval | None = None
    k_sd: float | None = None
    failed: int = 0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(
                f"report: system '{self.name}' has the role '{self.role}', "
                f"which is none of {', '.join(ROLES)}"
            )


@dataclass(frozen=True)
class TypeScores:
    """Mean scores over the questions of one type; fractions of 1, and passages."""

    answer: float
    set_f1: float | None
    mean_k: float


@dataclass(frozen=True)
class TypeRow:
    """One question type before and after feedback.

    Attributes:
      name: the type.
      questions: how many.
      needed_k: mean number of passages its questions need; None where unknown.
      before, after: the scores; None where that stage was not run.
    """

    name: str
    questions: int
    needed_k: float | None
    before: TypeScores | None
    after: TypeScores | None


@dataclass(frozen=True)
class ShownPassage:
    """One candidate passage of an example; ``needed`` is None where unknown."""

    number: int
    text: str
    title: str = ""
    needed: bool | None = None


@dataclass(frozen=True)
class SampledList:
    """One distinct list that was sampled for an example, and what came of it.

    Attributes:
      list: 1-based passage numbers in the order written; ``()`` is ``None``.
      count: how many of the samples were this list.
      answer: what the generator answered from it.
      reward: the reward.
      terms: the reward's terms before weighting, by name.
    """

    list: Sequence[int]
    count: int
    answer: str
    reward: float
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyChoice:
    """The list a policy chose for an example, and the answer; ``right`` is None where unknown."""

    name: str
    list: Sequence[int]
    answer: str
    right: bool | None = None


@dataclass(frozen=True)
class ShownQuestion:
    """One question shown in full.

    Attributes:
      id, question, type: as in the question file.
      answers: the reference answers.
      passages: the candidates in the retriever's order.
      sampled: the lists sampled in the rollouts; ``()`` where it had none.
      choices: what each policy chose, the final one last.
    """

    id: str
    question: str
    answers: Sequence[str]
    passages: Sequence[ShownPassage]
    type: str = ""
    sampled: Sequence[SampledList] = ()
    choices: Sequence[PolicyChoice] = ()


@dataclass(frozen=True)
class RunReport:
    """Everything the report shows.

    Attributes:
      title: the report's title.
      facts: how the run was made.
      systems: the compared systems, in the order to list them.
      answer_metric: short name of the answer metric, with its implementation where those disagree
        (``ROUGE-L, rouge-score``).
      curves: training and reward curves, in the order of the stages.
      k_before, k_after: needed k against chosen k before and after feedback.
      change: the answer metric after feedback minus before, over the same questions.
      types: breakdown by question type.
      ranks: where the candidates' order puts the needed passages, by how many are needed.
      examples: questions shown in full.
      notes: remarks on this run, one paragraph each, shown at the top.
    """

    title: str
    facts: RunFacts
    systems: Sequence[SystemRow] = ()
    answer_metric: str = "EM"
    curves: Sequence[Curve] = ()
    k_before: KMatrix | None = None
    k_after: KMatrix | None = None
    change: Difference | None = None
    types: Sequence[TypeRow] = ()
    ranks: Sequence[RankRow] = ()
    examples: Sequence[ShownQuestion] = ()
    notes: Sequence[str] = ()

    def first(self, role: Role) -> SystemRow | None:
        """The first system of a role, or None."""
        return next((s for s in self.systems if s.role == role), None)

    def last(self, role: Role) -> SystemRow | None:
        """The last system of a role, or None."""
        return next((s for s in reversed(self.systems) if s.role == role), None)

    def shuffled(self, row: SystemRow) -> SystemRow | None:
        """The row of the same system that was shown the candidates in random order, or None."""
        name = shuffled_name(row.name)
        return next((s for s in self.systems if s.role == "shuffled" and s.name == name), None)
