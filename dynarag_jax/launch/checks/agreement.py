"""Whether stages agree on prompts and types, and whether servers' keys are set."""

from __future__ import annotations

import os
import re
from collections import Counter
from urllib.parse import urlsplit

from dynarag_jax.launch.checks.finding import Finding, Subject, is_ours, kinds, prompts_are_read

_PROMPTS = (
    *("style", "ids", "max_list", "rerank_tokens"),
    *("answer_prompt_tokens", "answer_tokens", "labels"),
)


def check_agreement(subject: Subject) -> list[Finding]:
    """Say where a stage's prompts or types are not those of most stages; it may be meant so."""
    values: dict[str, dict[str, object]] = {}
    for name, stage in subject.stages.items():
        if not is_ours(stage) or "Facts" in kinds(stage) or not prompts_are_read(stage):
            continue
        if (prompts := getattr(stage, "prompts", None)) is not None:
            for field in _PROMPTS:
                values.setdefault(f"prompts.{field}", {})[name] = getattr(prompts, field)
            dtype = stage.model.dtype if "Train" in kinds(stage) else getattr(stage, "dtype", None)
            if dtype is not None:
                values.setdefault("dtype", {})[name] = dtype
        elif "Pairs" in kinds(stage):
            values.setdefault("prompts.style", {})[name] = stage.style
    chosen = {name for name, _ in subject.chosen()}
    findings = []
    for field, by_stage in values.items():
        usual = Counter(by_stage.values()).most_common(1)[0][0]
        others = [name for name, value in by_stage.items() if value == usual]
        for name, value in by_stage.items():
            if value != usual and name in chosen:
                shown = "model.dtype" if field == "dtype" and others and "Train" in kinds(
                    subject.stages[name]
                ) else field  # fmt: skip
                findings.append(
                    Finding("note", name, f"{shown} is {value}, and {usual} in {', '.join(others)}")
                )
    if values and not findings and len(chosen) > 1:
        findings.append(Finding("ok", "", "stages agree on prompts and types"))
    return findings


def check_logps(subject: Subject) -> list[Finding]:
    """Find stages that would compare log-probabilities of one type with their own of another."""
    findings = []
    for name, stage in subject.chosen():
        made = re.match(r"\{run\}/([^/]+)/", getattr(stage, "rollouts", None) or "")
        source = made[1] if made else ""
        there = getattr(subject.stages.get(source), "dtype", None)
        if "Train" not in kinds(stage) or there is None:
            continue
        streams = [getattr(stage, stream, None) for stream in ("reranker", "answers")]
        read = [
            kind
            for stream in streams
            if stream is not None and stream.batch
            for kind in ("reference", "behavior")
            if stream.objectives.reads(kind)
        ]
        if read and there != stage.model.dtype:
            findings.append(
                Finding(
                    "problem", name,
                    f"model.dtype is {stage.model.dtype}, and '{source}' computes the "
                    f"log-probabilities that it reads in {there}: their difference would be "
                    f"rounding; give both one type",
                )
            )  # fmt: skip
    return findings


def check_keys(subject: Subject) -> list[Finding]:
    """Say which variables for servers' keys are not set; not every server wants one."""
    findings = []
    for name, stage in subject.chosen():
        kind, reward = kinds(stage), getattr(stage, "reward", None)
        used = {
            "server": bool(kind & {"SampleRollouts", "CollectReasons"}),
            # Of a training stage it is a stream of answers.
            "generator": "Train" not in kind,
            "judge": ("Label" in kind and stage.source == "judge")
            or ("SampleRollouts" in kind and reward is not None and reward.judge),
        }
        for field, needed in used.items():
            server = getattr(stage, field, None)
            if not needed or server is None:
                continue
            if not server.url:
                if field == "judge":
                    text = "the reward weighs 'judge': set judge.url and judge.model"
                    findings.append(Finding("problem", name, text))
                elif "CollectReasons" in kind:
                    text = "reasons need a server: set server.url and server.model"
                    findings.append(Finding("problem", name, text))
                continue
            variable, local = server.key_variable, _local(server.url)
            if variable and not local and not os.environ.get(variable):
                text = f"{field}: {variable} is not set; a server that wants a key will refuse"
                findings.append(Finding("note", name, text))
            else:
                findings.append(Finding("ok", name, f"{field} {server.url}"))
    return findings


def _local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith(("127.", "10.", "192.168."))
