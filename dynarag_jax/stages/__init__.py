"""The stages of a run, a file each: its configuration, and the function that runs it.

A config file takes the classes from here. Nobody but config files and ``launch`` imports stages.
"""

import warnings

from dynarag_jax.stages.answer import Answer
from dynarag_jax.stages.bench import Bench
from dynarag_jax.stages.calibrate import Calibrate, CalibrationTarget
from dynarag_jax.stages.common.curves import CurveConfig
from dynarag_jax.stages.compare import Compare
from dynarag_jax.stages.contrast import Contrast
from dynarag_jax.stages.embed import Embed
from dynarag_jax.stages.evaluate import Evaluate
from dynarag_jax.stages.export import Export
from dynarag_jax.stages.facts import Facts
from dynarag_jax.stages.feedback import Feedback
from dynarag_jax.stages.gather import Gather
from dynarag_jax.stages.index import BuildIndex
from dynarag_jax.stages.label import Label
from dynarag_jax.stages.mix import Mix
from dynarag_jax.stages.pairs import Pairs
from dynarag_jax.stages.reasons import CollectReasons
from dynarag_jax.stages.reference import Reference
from dynarag_jax.stages.report import Report
from dynarag_jax.stages.rerank import Rerank
from dynarag_jax.stages.retrieve import Retrieve
from dynarag_jax.stages.rollout import SampleRollouts
from dynarag_jax.stages.rounds import Rounds
from dynarag_jax.stages.score import Score
from dynarag_jax.stages.serve import Serve
from dynarag_jax.stages.sft import Sft
from dynarag_jax.stages.tokenizer import TrainTokenizer
from dynarag_jax.stages.update import Update
from dynarag_jax.training.config import Contexts, EncoderTraining, Stream

EARLIER = {"Dpo": Feedback, "Rollout": SampleRollouts, "Tokenizer": TrainTokenizer}
"""Classes by the names they had; config files that use them still run."""

__all__ = [
    "Answer",
    "Bench",
    "BuildIndex",
    "Calibrate",
    "CalibrationTarget",
    "CollectReasons",
    "Compare",
    "Contexts",
    "Contrast",
    "CurveConfig",
    "Embed",
    "EncoderTraining",
    "Evaluate",
    "Export",
    "Facts",
    "Feedback",
    "Gather",
    "Label",
    "Mix",
    "Pairs",
    "Reference",
    "Report",
    "Rerank",
    "Retrieve",
    "Rounds",
    "SampleRollouts",
    "Score",
    "Serve",
    "Sft",
    "Stream",
    "TrainTokenizer",
    "Update",
]


def __getattr__(name: str) -> type:
    if name in EARLIER:
        warnings.warn(
            f"dynarag_jax.stages.{name} is now {EARLIER[name].__name__}", FutureWarning, 2
        )
        return EARLIER[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
