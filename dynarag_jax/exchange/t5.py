"""T5 weights from Hugging Face directories, and the text and tokens of MonoT5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.known import CONFIG, TrackedFields
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.exchange.tensors import (
    default_place,
    place,
    stack,
    target_dtype,
    their_shape,
)
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.models import t5
from dynarag_jax.models.config import Params, is_parameter
from dynarag_jax.models.t5 import T5Config

ARCHITECTURES = ("T5ForConditionalGeneration",)

# What a T5's config.json may say beside the fields that are read: the last two follow from
# feed_forward_proj, as transformers has them do.
_IDLE = {
    **CONFIG,
    "model_type": ("t5",),
    "is_encoder_decoder": (True,),
    "n_positions": None,
    "output_past": None,
    "dense_act_fn": None,
    "is_gated_act": None,
}

_TOP = {"embedding": "shared.weight", "head": "lm_head.weight"}
_INPUTS = {"query": 1, "key": 1, "value": 1, "output": 2, "up": 1, "gate": 1, "down": 1}
# Copies of the embedding, and a table that nothing reads, which old files carry.
_COPIES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def config_from_hf(hf: Mapping[str, Any], tied: bool, where: str = "config.json") -> T5Config:
    """The T5 that a ``config.json`` describes.

    Args:
      tied: whether the weights hold no output projection of their own. The files of different
        transformers versions disagree on what ``tie_word_embeddings`` says about it.

    Raises:
      InputError: another architecture, an unsupported feature, or a missing field.
    """
    if not isinstance(hf, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(hf).__name__}")
    fields = TrackedFields(hf)
    cfg = _config(fields, tied, where)
    fields.refuse_rest(_IDLE, where)
    return cfg


def _config(hf: TrackedFields, tied: bool, where: str) -> T5Config:
    architecture = (hf.get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {architecture!r} is not supported here; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    mlp = hf.get("feed_forward_proj", "relu")
    if mlp not in ("relu", "gated-gelu"):
        raise InputError(
            f"{where}: feed_forward_proj = {mlp!r} is not supported, only 'relu', 'gated-gelu'"
        )
    try:
        return T5Config(
            vocab=hf["vocab_size"],
            width=hf["d_model"],
            layers=hf["num_layers"],
            decoder_layers=hf.get("num_decoder_layers") or hf["num_layers"],
            heads=hf["num_heads"],
            head_size=hf["d_kv"],
            mlp=hf["d_ff"],
            gated=mlp == "gated-gelu",
            buckets=hf.get("relative_attention_num_buckets", 32),
            max_distance=hf.get("relative_attention_max_distance", 128),
            norm_eps=float(hf.get("layer_norm_epsilon", 1e-6)),
            tied=tied,
            scaled_output=bool(
                hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings") is not False)
            ),
            start=int(hf.get("decoder_start_token_id") or 0),
        )
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: these fields make no T5 ({error})") from None


def _layer_names(cfg: T5Config, side: str) -> dict[str, str]:
    """Hugging Face's name of each array of a block, without the block's prefix."""
    letters = {"query": "q", "key": "k", "value": "v", "output": "o"}
    names = {"self_norm": "layer.0.layer_norm"}
    names |= {f"self_{n}": f"layer.0.SelfAttention.{x}" for n, x in letters.items()}
    last = 1
    if side == "decoder":
        last = 2
        names["cross_norm"] = "layer.1.layer_norm"
        names |= {f"cross_{n}": f"layer.1.EncDecAttention.{x}" for n, x in letters.items()}
    names |= {
        "mlp_norm": f"layer.{last}.layer_norm",
        "up": f"layer.{last}.DenseReluDense.{'wi_1' if cfg.gated else 'wi'}",
        "down": f"layer.{last}.DenseReluDense.wo",
    }
    if cfg.gated:
        names["gate"] = f"layer.{last}.DenseReluDense.wi_0"
    return names


def _side_names(side: str) -> dict[str, str]:
    return {
        "position_bias": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "final_norm": f"{side}.final_layer_norm.weight",
    }


def _inputs(name: str) -> int:
    return _INPUTS.get(name.removeprefix("self_").removeprefix("cross_"), 0)


def expected_tensors(cfg: T5Config) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names of a T5, with their shapes."""
    table = t5.parameter_table(cfg)
    shapes = {_TOP[name]: table[name].shape for name in _TOP if name in table}
    for side in ("encoder", "decoder"):
        shapes |= {theirs: table[side][n].shape for n, theirs in _side_names(side).items()}
        for name, theirs in _layer_names(cfg, side).items():
            p = table[side]["layers"][name]
            shape = their_shape(p.shape[1:], _inputs(name))
            shapes |= {f"{side}.block.{i}.{theirs}.weight": shape for i in range(p.shape[0])}
    return shapes


def load_t5(
    source: PathLike,
    param_dtype: str = "float32",
    dtype: str = "float32",
    shardings: Any = None,
) -> tuple[T5Config, Params]:
    """Read a T5 from a Hugging Face directory or hub id.

    Args:
      param_dtype, dtype: types of the parameters in memory and of the activations.
      shardings: function from the config to the tree of NamedSharding; None is the default device.

    Raises:
      InputError: no such model, an unsupported one, or tensors that do not fit; all are listed.
    """
    directory = model_directory(source)
    where = directory / "config.json"
    hf = read_json(where)
    tensors = Tensors(directory)
    cfg = config_from_hf(hf, tied=_TOP["head"] not in tensors.names(), where=str(where))
    settings: dict[str, Any] = vars(cfg) | {"param_dtype": param_dtype, "dtype": dtype}
    cfg = T5Config(**settings)
    tensors.check(expected_tensors(cfg), lambda name: name == _IGNORED, _COPIES)
    table = t5.parameter_table(cfg)
    places = shardings(cfg) if shardings else None
    if places is None:
        places = jax.tree.map(lambda _: default_place(), table, is_leaf=is_parameter)
    kind = target_dtype(param_dtype)
    params: dict[str, Any] = {
        name: place(tensors, theirs, places[name], kind)
        for name, theirs in _TOP.items()
        if name in table
    }
    for side in ("encoder", "decoder"):
        there = places[side]
        params[side] = {
            name: place(tensors, theirs, there[name], kind)
            for name, theirs in _side_names(side).items()
        }
        params[side]["layers"] = {
            name: stack(
                tensors,
                [f"{side}.block.{i}.{theirs}.weight" for i in range(p.shape[0])],
                p.shape,
                _inputs(name),
                there["layers"][name],
                kind,
            )
            for name, theirs in _layer_names(cfg, side).items()
            for p in (table[side]["layers"][name],)
        }
    return cfg, params


# ---------------------------------------------------------------------------- MonoT5


def monot5_text(question: str, passage: str) -> str:
    """The text that MonoT5 was trained to judge (arXiv 2003.06713, section 3)."""
    return f"Query: {question} Document: {passage} Relevant:"


def monot5_tokens(tokenizer: Any) -> tuple[int, int]:
    """The ids of MonoT5's answers, ``true`` and ``false``.

    Raises:
      InputError: the tokenizer does not have them as single tokens.
    """
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("true", "false")]
    if any(len(tokens) != 1 for tokens in ids):
        raise InputError(
            "MonoT5 needs 'true' and 'false' as single tokens; this tokenizer splits them"
        )
    return ids[0][0], ids[1][0]
