"""An encoder policy as one ONNX file, with the loop that draws a list outside of it.

The graph has two parts. From the pairs of a question it computes ``memory``, ``base`` and the
cross-encoder's ``scores``; from ``memory_in``, ``base_in`` and ``chosen`` the ``logits`` of a step,
stop's first, a calibration's bias on stopping included. Every input has a default of one position:
who asks for one part leaves the inputs of the other out, which then cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.exchange.calibration import ListBias, read_calibration
from dynarag_jax.exchange.encoder_policies import StoredPolicy, read_encoder_policy
from dynarag_jax.files import PathLike
from dynarag_jax.models.list_head import COUNTS, RETRIEVER

OPSET = 17
_FAR = -1e9


class _Graph:
    """Nodes and weights of an ONNX graph as they come."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._count = 0

    def weight(self, values: Any, name: str = "") -> str:
        """A constant."""
        self._count += 1
        name = name or f"w{self._count}"
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """A vector of integers."""
        return self.weight(np.array(values, np.int64))

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one result."""
        self._count += 1
        name = name or f"x{self._count}"
        self.nodes.append(self._onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def norm(self, x: str, scale: Any, bias: Any, eps: float) -> str:
        """Layer norm over the last axis."""
        return self(
            "LayerNormalization", x, self.weight(scale), self.weight(bias), axis=-1, epsilon=eps
        )

    def linear(self, x: str, w: Any, b: Any = None) -> str:
        """``x @ w + b``."""
        x = self("MatMul", x, self.weight(w))
        return x if b is None else self("Add", x, self.weight(b))

    def gelu(self, x: str) -> str:
        """The exact GELU."""
        erf = self("Erf", self("Mul", x, self.weight(np.float32(2**-0.5))))
        half = self("Mul", x, self.weight(np.float32(0.5)))
        return self("Mul", half, self("Add", erf, self.weight(np.float32(1.0))))

    def size(self, x: str, axis: int) -> str:
        """[1], the size of an axis."""
        return self("Gather", self("Shape", x), self.ints(axis), axis=0)


def _encode(g: _Graph, stored: StoredPolicy, interaction: bool) -> str:
    """Hidden states [N, T, D] of BERT or RoBERTa on ``tokens``, ``mask`` and ``types``."""
    cfg, p = stored.encoder, stored.encoder_params
    h, size = cfg.heads, cfg.width // cfg.heads
    t = g.size("tokens", 1)
    begin = g.ints(cfg.first_position)
    rows = g("Slice", g.weight(p["positions"]), begin, g("Add", begin, t), g.ints(0))
    x = g("Add", g("Gather", g.weight(p["tokens"]), "tokens"), rows)
    x = g("Add", x, g("Gather", g.weight(p["types"]), "types"))
    x = g.norm(x, p["norm_scale"], p["norm_bias"], cfg.norm_eps)
    hidden = g("Sub", g.weight(np.float32(1.0)), g("Cast", "mask", to=1))
    far = g("Mul", hidden, g.weight(np.float32(_FAR)))
    far = g("Unsqueeze", far, g.ints(1, 2))  # [N, 1, 1, T]
    layers = {name: np.asarray(w) for name, w in p["layers"].items()}
    for i in range(cfg.layers):
        w = {name: x_[i] for name, x_ in layers.items()}
        parts = []
        for weight, bias in zip(
            np.split(w["qkv"], 3, axis=-1), np.split(w["qkv_bias"], 3, axis=-1), strict=True
        ):
            part = g("Reshape", g.linear(x, weight, bias), g.ints(0, 0, h, size))
            parts.append(g("Transpose", part, perm=[0, 2, 1, 3]))
        q = g("Mul", parts[0], g.weight(np.float32(size**-0.5)))
        scores = g("MatMul", q, g("Transpose", parts[1], perm=[0, 1, 3, 2]))
        scores = g("Add", scores, far)
        values = _across(g, q, scores, parts[1:], h, size) if interaction else None
        if values is None:
            values = g("MatMul", g("Softmax", scores, axis=-1), parts[2])
        values = g("Transpose", values, perm=[0, 2, 1, 3])
        values = g("Reshape", values, g.ints(0, 0, cfg.width))
        x = g("Add", x, g.linear(values, w["output"], w["output_bias"]))
        x = g.norm(x, w["attention_norm_scale"], w["attention_norm_bias"], cfg.norm_eps)
        up = g.gelu(g.linear(x, w["up"], w["up_bias"]))
        x = g("Add", x, g.linear(up, w["down"], w["down_bias"]))
        x = g.norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"], cfg.norm_eps)
    return x


def _across(g: _Graph, q: str, scores: str, keys_values: Sequence[str], h: int, size: int) -> str:
    """Values of attention over own positions and the other candidates' first ones."""
    n, t = g.size("tokens", 0), g.size("tokens", 1)
    first = [g("Gather", x, g.weight(np.int64(0)), axis=2) for x in keys_values]  # [N, H, K]
    heads, sizes = g.ints(h), g.ints(size)
    flat = g("Reshape", g("Transpose", q, perm=[1, 0, 2, 3]), g.ints(h, -1, size))
    far = g("MatMul", flat, g("Transpose", first[0], perm=[1, 2, 0]))  # [H, N T, N]
    shape = g("Concat", heads, n, t, n, axis=0)
    far = g("Transpose", g("Reshape", far, shape), perm=[1, 0, 2, 3])  # [N, H, T, N]
    ones = g("ConstantOfShape", g("Concat", n, n, axis=0))
    own = g("EyeLike", ones, dtype=1)
    own = g("Unsqueeze", g("Mul", own, g.weight(np.float32(_FAR))), g.ints(1, 2))
    whole = g("Softmax", g("Concat", scores, g("Add", far, own), axis=-1), axis=-1)
    # Cut apart where the own positions end.
    last = g.ints(3)
    near = g("Slice", whole, g.ints(0), t, last)
    far = g("Slice", whole, t, g("Add", t, n), last)
    values = g("MatMul", near, keys_values[1])
    turned = g(
        "Reshape", g("Transpose", far, perm=[1, 0, 2, 3]), g("Concat", heads, g.ints(-1), n, axis=0)
    )
    other = g("MatMul", turned, g("Transpose", first[1], perm=[1, 0, 2]))  # [H, N T, K]
    other = g("Reshape", other, g("Concat", heads, n, t, sizes, axis=0))
    return g("Add", values, g("Transpose", other, perm=[1, 0, 2, 3]))


def _attend(
    g: _Graph, q: str, k: str, v: str, heads: int, width: int, more: str = ""
) -> tuple[str, str]:
    """Attention of q [M, W] over k, v [S, W]: weights [H, M, S] and values [M, W]."""
    size = width // heads

    def split(x: str, perm: list[int]) -> str:
        return g("Transpose", g("Reshape", x, g.ints(-1, heads, size)), perm=perm)

    scores = g("MatMul", split(q, [1, 0, 2]), split(k, [1, 2, 0]))
    if more:
        scores = g("Add", scores, more)
    weights = g("Softmax", g("Mul", scores, g.weight(np.float32(size**-0.5))), axis=-1)
    values = g("MatMul", weights, split(v, [1, 0, 2]))
    return weights, g("Reshape", g("Transpose", values, perm=[1, 0, 2]), g.ints(-1, width))


def _feed(g: _Graph, x: str, w: Any) -> str:
    hidden = g.norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"], 1e-6)
    up = g.gelu(g.linear(hidden, w["up"], w["up_bias"]))
    return g("Add", x, g.linear(up, w["down"], w["down_bias"]))


def _remember(g: _Graph, stored: StoredPolicy, vectors: str, scores: str) -> None:
    """``memory`` [S, W] and ``base`` [S] of the candidates."""
    cfg, p = stored.head, stored.head_params
    assert cfg is not None
    assert p is not None
    stop = g.weight(np.asarray(p["stop_bias"]).reshape(1))
    pair = scores if cfg.pair_score else g("Mul", scores, g.weight(np.float32(0.0)))
    base = g("Concat", stop, pair, axis=0)
    if not cfg.layers:
        g("Identity", base, name="base")
        g("Unsqueeze", base, g.ints(1), name="memory")
        return
    x = g.linear(g.norm(vectors, p["vector_norm_scale"], p["vector_norm_bias"], 1e-6), p["input"])
    features = []
    if cfg.pair_score:
        below = g("Sub", scores, g("ReduceMax", scores, axes=[0], keepdims=1))
        both = [g("Unsqueeze", part, g.ints(1)) for part in (scores, below)]
        features.append(g("Mul", g("Concat", *both, axis=1), g.weight(np.float32(0.25))))
    if cfg.retriever:
        features.append("retriever")
    if features:
        joined = g("Concat", *features, axis=1)
        x = g("Add", x, g.linear(joined, p["features"]))
    x = g("Add", x, g.weight(p["input_bias"]))
    x = g("Concat", g.weight(np.asarray(p["stop"])[None]), x, axis=0)
    for i in range(cfg.layers):
        w = {name: np.asarray(y)[i] for name, y in p["layers"].items()}
        normed = g.norm(x, w["norm_scale"], w["norm_bias"], 1e-6)
        q, k, v = (g.linear(normed, w[name]) for name in ("query", "key", "value"))
        _, values = _attend(g, q, k, v, cfg.heads, cfg.width)
        x = _feed(g, g("Add", x, g.linear(values, w["output"])), w)
    memory = g(
        "Identity", g.norm(x, p["final_norm_scale"], p["final_norm_bias"], 1e-6), name="memory"
    )
    own = g("Reshape", g.linear(memory, np.asarray(p["base"])[:, None]), g.ints(-1))
    g("Add", base, own, name="base")


def _lean(g: _Graph, scores: str, bias: ListBias | None) -> None:
    """``logits``: the scores [M, S] of steps with the bias on stopping."""
    if not bias:
        g("Identity", scores, name="logits")
        return
    begun = g("ReduceMax", "chosen", axes=[1], keepdims=1)  # [M, 1]
    more = g("Mul", begun, g.weight(np.float32(bias.stop - bias.empty)))
    added = g("Add", more, g.weight(np.float32(bias.empty)))
    left = g("Slice", scores, g.ints(0), g.ints(1), g.ints(1))
    right = g("Slice", scores, g.ints(1), g.ints(1 << 30), g.ints(1))
    g("Concat", g("Add", left, added), right, name="logits", axis=1)


def _step(g: _Graph, stored: StoredPolicy, bias: ListBias | None) -> None:
    """``logits`` [M, S] of steps at which ``chosen`` [M, S] are chosen."""
    cfg, p = stored.head, stored.head_params
    assert cfg is not None
    assert p is not None
    base = g("Unsqueeze", "base_in", g.ints(0))
    if not cfg.layers:
        _lean(g, g("Add", base, g("Mul", "chosen", g.weight(np.float32(0.0)))), bias)
        return
    count = g("ReduceSum", "chosen", g.ints(1), keepdims=0)
    count = g("Min", count, g.weight(np.float32(COUNTS - 1)))
    x = g("Gather", g.weight(p["counts"]), g("Cast", count, to=7), axis=0)
    taken = g("Unsqueeze", "chosen", g.ints(0))  # [1, M, S]
    size = cfg.width // cfg.heads
    for i in range(cfg.steps):
        w = {name: np.asarray(y)[i] for name, y in p["steps"].items()}
        q = g.linear(g.norm(x, w["norm_scale"], w["norm_bias"], 1e-6), w["query"])
        k, v = (g.linear("memory_in", w[name]) for name in ("key", "value"))
        # What a chosen candidate's key has more: one number a head and step.
        heads = np.kron(np.eye(cfg.heads), np.ones((size, 1))) * w["chosen_key"][:, None]
        flags = g("Transpose", g.linear(q, heads), perm=[1, 0])
        more = g("Mul", g("Unsqueeze", flags, g.ints(2)), taken)
        weights, values = _attend(g, q, k, v, cfg.heads, cfg.width, more)
        share = g("ReduceSum", g("Mul", weights, taken), g.ints(2), keepdims=0)  # [H, M]
        spread = np.kron(np.eye(cfg.heads), np.ones((1, size))) * w["chosen_value"]
        flags = g.linear(g("Transpose", share, perm=[1, 0]), spread)
        x = g("Add", x, g.linear(g("Add", values, flags), w["output"]))
        x = _feed(g, x, w)
    x = g.norm(x, p["step_norm_scale"], p["step_norm_bias"], 1e-6)
    keys = g("Transpose", g.linear("memory_in", p["point_key"]), perm=[1, 0])
    pointed = g("MatMul", g.linear(x, p["point_query"]), keys)
    beside = g("MatMul", "chosen", g.linear("memory_in", p["joint_chosen"]))
    left = g("Transpose", g.linear("memory_in", p["joint_left"]), perm=[1, 0])
    both = g("Add", pointed, g("MatMul", beside, left))
    scaled = g("Mul", both, g.weight(np.float32(cfg.width**-0.5)))
    _lean(g, g("Add", base, scaled), bias)


def write_onnx(source: PathLike, path: PathLike, int8: bool = False) -> None:
    """Write a policy's directory as one ONNX file.

    Args:
      int8: matrices as 8-bit integers, quantized as they are (dynamic quantization).

    Raises:
      InputError: the policy has no list head, or is of a kind that is not written.
      MissingExtra: onnx, or for int8 onnxruntime, is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise MissingExtra("onnx", "onnx", "writing an ONNX file") from None
    stored = read_encoder_policy(source)
    if stored.head is None:
        raise InputError(f"{source}: no list head; train a policy over lists from it first")
    if stored.encoder.family == "modernbert" or stored.settings.get("reencode"):
        what = "ModernBERT" if stored.encoder.family == "modernbert" else "reencode"
        raise InputError(
            f"{source}: {what} is not written as ONNX; BERT and RoBERTa are, read once"
        )
    g = _Graph()
    hidden = _encode(g, stored, bool(stored.settings.get("interaction")))
    first = g("Gather", hidden, g.weight(np.int64(0)), axis=1)
    head = {name: np.asarray(w) for name, w in stored.encoder_params["head"].items()}
    dense = g("Tanh", g.linear(first, head["dense"], head["dense_bias"]))
    scores = g.linear(dense, head["score"], head["score_bias"])
    scores = g("Reshape", scores, g.ints(-1), name="scores")
    vectors = first
    if stored.settings.get("pooling") == "mean":
        real = g("Unsqueeze", g("Cast", "mask", to=1), g.ints(2))
        summed = g("ReduceSum", g("Mul", hidden, real), g.ints(1), keepdims=0)
        vectors = g("Div", summed, g("ReduceSum", real, g.ints(1), keepdims=0))
    _remember(g, stored, vectors, scores)
    calibration = read_calibration(stored.source)
    _step(g, stored, calibration.bias if calibration else None)
    width = stored.head.width if stored.head.layers else 1
    floats, ints = TensorProto.FLOAT, TensorProto.INT64
    inputs: dict[str, tuple[Any, list[Any], np.ndarray]] = {
        name: (ints, ["candidates", "pieces"], np.ones((1, 1), np.int64) * (name == "mask"))
        for name in ("tokens", "mask", "types")
    }
    if stored.head.retriever:
        shape = ["candidates", RETRIEVER]
        inputs["retriever"] = floats, shape, np.zeros((1, RETRIEVER), np.float32)
    inputs["memory_in"] = floats, ["with_stop", width], np.zeros((1, width), np.float32)
    inputs["base_in"] = floats, ["with_stop"], np.zeros(1, np.float32)
    inputs["chosen"] = floats, ["steps", "with_stop"], np.zeros((1, 1), np.float32)
    defaults = [onnx.numpy_helper.from_array(x, name) for name, (_, _, x) in inputs.items()]
    outputs: dict[str, list[Any]] = {
        "memory": ["candidates_and_stop", width],
        "base": ["candidates_and_stop"],
        "scores": ["candidates"],
        "logits": ["steps", "with_stop"],
    }
    graph = helper.make_graph(
        g.nodes,
        "encoder policy",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape, _) in inputs.items()],
        [helper.make_tensor_value_info(n, floats, shape) for n, shape in outputs.items()],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    model.producer_name = "dynarag_jax"
    for key in ("max_list", "pieces"):
        entry = model.metadata_props.add()
        entry.key, entry.value = (
            key,
            str(stored.settings.get(key, {"max_list": 15, "pieces": 160}[key])),
        )
    onnx.checker.check_model(model)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not int8:
        model.graph.initializer.extend(defaults)
        onnx.save(model, str(target))
        return
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise MissingExtra("onnxruntime", "onnx", "writing 8-bit weights") from None
    quantize_dynamic(
        model, str(target), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gather"]
    )
    # It takes inputs with a default for constants: they get theirs afterwards.
    quantized = onnx.load(str(target))
    quantized.graph.initializer.extend(defaults)
    onnx.save(quantized, str(target))


def onnx_list(session: Any, feeds: dict[str, np.ndarray], max_list: int) -> tuple[int, ...]:
    """The greedy list of one question: the loop around the graph.

    Args:
      session: an ``onnxruntime.InferenceSession`` of the file.
      feeds: ``tokens``, ``mask`` and ``types`` [N, T] int64, and ``retriever`` where it is read.

    Returns:
      1-based candidates, best first.
    """
    memory, base = session.run(["memory", "base"], feeds)
    chosen = np.zeros((1, len(base)), np.float32)
    found: list[int] = []
    while len(found) < min(max_list, len(base) - 1):
        step = {"memory_in": memory, "base_in": base, "chosen": chosen}
        (logits,) = session.run(["logits"], step)
        best = int(np.where(chosen[0] > 0, -np.inf, logits[0]).argmax())
        if best == 0:
            break
        found.append(best)
        chosen[0, best] = 1.0
    return tuple(found)
