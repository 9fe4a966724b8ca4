"""transformers in a fresh process: `from_pretrained`, then one token.

Run by `benchmarks.bench_start`: python -m benchmarks.peers.transformers_start FOLDER THREADS
Reads `{"prompt": …}` from stdin, answers `{"token": …}`, and ends.
"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()


def first_token(folder: str, prompt: str) -> str:
    """The most likely continuation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        output = model.generate(ids, max_new_tokens=1, do_sample=False)
    text: str = tokenizer.decode(output[0, ids.shape[1] :])
    return text


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    token = first_token(sys.argv[1], json.loads(sys.stdin.readline())["prompt"])
    print(json.dumps({"token": token}), flush=True)
    os._exit(0)
