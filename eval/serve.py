"""Serve a model over HTTP: rerank endpoints, chat completions, lists explained.

    python -m eval.serve runs/mine/export/model --port 8000
    python -m eval.serve CROSS_ENCODER --how.rule.name threshold --how.rule.threshold 0.3

Listens on 127.0.0.1 until SIGTERM or Ctrl-C; docs/serving.md says what clients send and get.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("serve")
