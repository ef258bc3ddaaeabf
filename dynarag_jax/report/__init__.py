"""Tables, plots, and the page one looks at."""

from dynarag_jax.report.figures import figures, write_figures
from dynarag_jax.report.page import render, write_report
from dynarag_jax.report.schema import (
    Curve,
    KMatrix,
    PolicyChoice,
    RankRow,
    RunFacts,
    RunReport,
    SampledList,
    ShownPassage,
    ShownQuestion,
    SystemRow,
    TypeRow,
    TypeScores,
)
from dynarag_jax.report.summary import summary, write_summary
from dynarag_jax.report.terminal import terminal_table

__all__ = [
    "Curve",
    "KMatrix",
    "PolicyChoice",
    "RankRow",
    "RunFacts",
    "RunReport",
    "SampledList",
    "ShownPassage",
    "ShownQuestion",
    "SystemRow",
    "TypeRow",
    "TypeScores",
    "figures",
    "render",
    "summary",
    "terminal_table",
    "write_figures",
    "write_report",
    "write_summary",
]
