"""The section "How to read this page", for a person who has not read the paper."""

from __future__ import annotations

from dynarag_jax.report.markup import Markup, element, join
from dynarag_jax.report.scales import passages
from dynarag_jax.report.schema import RunReport


def guide(report: RunReport) -> Markup:
    """A few paragraphs and the words this page uses; only what the report shows is explained."""
    metric, facts = report.answer_metric, report.facts
    shown = f"{facts.candidates} candidate passages" if facts.candidates else "candidate passages"
    method = element(
        "p",
        f"A search brings {shown} for a question. One language model then does two things: it "
        "writes the list of the passages that are needed, such as ",
        element("code", "[3], [1]"),
        " or ",
        element("code", "None"),
        ", and it answers the question from those passages alone. How many it lists is its own "
        "decision. This page shows whether it decided well.",
    )
    training = element(
        "p",
        "It learns in two stages. First it imitates lists of an expert, which may be wrong "
        "(behavior cloning). Then it writes several lists for each question, answers from each, "
        "and is trained to prefer the list whose answer earned the higher reward (feedback). "
        "Nobody tells it in that stage which passages are needed; only the answers are judged.",
    )
    words: list[tuple[str, str]] = [
        (
            f"{metric} (%)",
            "The share of questions answered rightly: the answer equals a reference answer once "
            "case, punctuation and articles are ignored. Questions that failed count as wrong."
            if metric == "EM"
            else "The answer score, the mean over questions in percent. Questions that failed "
            "count as 0.",
        ),
        (
            "Set F1 (%)",
            "How well the listed passages agree with the needed ones, whatever their order: 100 "
            "for the same set, 0 for nothing in common. Listing nothing where nothing is needed "
            "is 100.",
        ),
        (
            "k",
            "The number of passages read. Less is cheaper: the generator reads every token of "
            "them."
            + (
                f" These questions need {passages(facts.needed_mean_k)} on average."
                if facts.needed_mean_k is not None
                else ""
            ),
        ),
        (
            "Gray numbers",
            "95 % intervals: where the mean would fall with other questions of the same kind "
            "(bootstrap over questions). They say nothing about other training seeds.",
        ),
    ]
    roles = {system.role for system in report.systems}
    if "fixed" in roles:
        words.append(
            ("Top k", "The same generator, given the first k passages of the search every time.")
        )
    if "none" in roles:
        words.append(("No retrieval", "The same generator without any passage."))
    if "oracle" in roles:
        words.append(
            (
                "Oracle passages",
                "The same generator, given exactly the needed passages: what a perfect list would "
                "bring.",
            )
        )
    if report.k_before or report.k_after:
        words.append(
            (
                "Matrices",
                "Each row holds the questions that need that many passages; the columns say how "
                "many were listed. The outlined cells are where both agree: a good policy has most "
                "questions there, one with a fixed k fills a single column.",
            )
        )
    if any(example.sampled for example in report.examples):
        formula = f" Reward: {facts.reward}." if facts.reward else ""
        words.append(
            (
                "Reward",
                "What an answer earned in the feedback stage; the lists with the highest and the "
                f"lowest reward become a training pair.{formula}",
            )
        )
    terms = join(*(join(element("dt", name), element("dd", said)) for name, said in words))
    return join(method, training, element("dl", terms, class_="guide"))
