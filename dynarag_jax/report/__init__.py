"""Tables, plots, and the page one looks at."""

from dynarag_jax.report.figures import figure, write_figure
from dynarag_jax.report.page import render, write_report
from dynarag_jax.report.schema import (
    Choice,
    Curve,
    Example,
    KMatrix,
    RunFacts,
    RunReport,
    SampledList,
    ShownPassage,
    SystemRow,
    TypeRow,
    TypeScores,
)
from dynarag_jax.report.summary import summary, write_summary
from dynarag_jax.report.terminal import terminal_table

__all__ = [
    "Choice",
    "Curve",
    "Example",
    "KMatrix",
    "RunFacts",
    "RunReport",
    "SampledList",
    "ShownPassage",
    "SystemRow",
    "TypeRow",
    "TypeScores",
    "figure",
    "render",
    "summary",
    "terminal_table",
    "write_figure",
    "write_report",
    "write_summary",
]
