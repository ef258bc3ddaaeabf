"""Where a checkpoint says that generation ends, and what else its generation_config.json says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.known import GENERATION, TrackedFields
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.templates import turn_end

# Beside settings of sampling, in whose place ours stand: names, versions and tokens of the model.
_IDLE = dict.fromkeys(
    (
        *GENERATION,
        *("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
        *("use_cache", "cache_implementation", "output_attentions", "output_hidden_states"),
        *("_name_or_path", "model_type", "dtype", "torch_dtype", "unsloth_version"),
    )
)


def generation_settings(source: PathLike) -> dict[str, Any]:
    """A checkpoint's generation_config.json; empty where there is none.

    Raises:
      InputError: it is no JSON object, or holds a field that is not known.
    """
    where = model_directory(source) / "generation_config.json"
    if not where.is_file():
        return {}
    value = read_json(where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    fields = TrackedFields(value)
    fields.get("eos_token_id")
    fields.get("stop_strings")
    fields.refuse_rest(_IDLE, str(where))
    return value


def generation_ends(source: PathLike, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends what a model writes; the tokenizer's end of text comes first.

    Declared are the tokenizer's, those of generation_config.json (of config.json where there is
    none, as in transformers), and what closes an assistant's turn in the chat template.

    Raises:
      InputError: an end is no token of the tokenizer, or ends by a string of several tokens.
    """
    directory = model_directory(source)
    settings, where = generation_settings(directory), directory / "generation_config.json"
    if settings:
        declared = settings.get("eos_token_id")
    else:
        where = directory / "config.json"
        config = read_json(where) if where.is_file() else {}
        declared = config.get("eos_token_id") if isinstance(config, dict) else None
    ends = [tokenizer.eos_token_id, *_ids(declared, len(tokenizer), where)]
    for text in settings.get("stop_strings") or ():
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise InputError(
                f"{where}: stop_strings = {text!r} is not one token; only single tokens end an "
                f"answer here: remove it, and check what the model writes"
            )
        ends += tokens
    closing = turn_end(tokenizer)
    return tuple(dict.fromkeys([*ends, *([] if closing is None else [closing])]))


def _ids(declared: Any, size: int, where: Path) -> Iterable[int]:
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < size:
            raise InputError(
                f"{where}: eos_token_id = {declared!r} must name tokens below {size}, the "
                f"tokenizer's size"
            )
    return ids
