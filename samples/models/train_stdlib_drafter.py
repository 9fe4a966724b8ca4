"""Train the models which guess tokens for ``stdlib-coder``, on a CPU.

They have the tokenizer of ``stdlib-coder`` and learn from the same files, with an eighth of its
parameters and less; the numbers go to each folder's ``metrics.json``.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import train_stdlib_coder as coder
import transformers
from stdlib_corpus import SEED, read_corpus
from torch import nn

# By folder: size of the hidden state and number of layers.
SHAPES = {"stdlib-drafter": (96, 2), "stdlib-drafter-narrow": (64, 1)}
HEAD_WIDTH = 32

# Fewer than for the larger model: more steps out of fewer tokens.
TOKENS_PER_STEP = 4096


def new_model(hidden_size: int, num_layers: int) -> transformers.Qwen3ForCausalLM:
    """Return an untrained model whose residual branches start at zero."""
    transformers.AttentionInterface.register("block", coder.block_attention)
    config = transformers.Qwen3Config(
        vocab_size=coder.VOCABULARY,
        max_position_embeddings=coder.CONTEXT,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // HEAD_WIDTH,
        num_key_value_heads=1,
        head_dim=HEAD_WIDTH,
        intermediate_size=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = transformers.Qwen3ForCausalLM(config)
    model.set_attn_implementation("block")
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            nn.init.zeros_(parameter)
    return model


def train(name: str, steps: int) -> None:
    """Train the model of this name and export it."""
    torch.manual_seed(SEED)
    coder.TOKENS_PER_STEP = TOKENS_PER_STEP
    corpus = read_corpus()
    tokenizer = transformers.AutoTokenizer.from_pretrained(coder.MODEL_FOLDER)
    library = [coder.encode(tokenizer, corpus.texts[name]) for name in corpus.library]
    tests = [coder.encode(tokenizer, corpus.texts[name]) for name in corpus.tests]
    decay_start = round((1 - coder.DECAY_PART) * steps)
    stable = coder.batches(library * coder.STABLE_LIBRARY_REPEATS + tests, coder.STABLE_LENGTH)
    decay = coder.batches(library * coder.DECAY_LIBRARY_REPEATS + tests, coder.CONTEXT)
    plan = itertools.chain(itertools.islice(stable, decay_start), decay)
    model = new_model(*SHAPES[name])
    optimizers = coder.new_optimizers(model)
    losses = torch.compile(coder.token_losses, dynamic=False)
    validation = [corpus.texts[name] for name in corpus.validation]
    for step, windows in enumerate(itertools.islice(plan, steps)):
        coder.set_rates(optimizers, step, steps)
        coder.train_step(model, optimizers, losses, windows)
        if (step + 1) % coder.CHECK_STEPS == 0:
            print(step + 1, coder.measure(model, tokenizer, validation, windows.shape[1] - 1), flush=True)
    facts = {"seed": SEED, "parameters": model.num_parameters(), "steps": steps}
    facts |= {"tokens_seen": steps * TOKENS_PER_STEP, "training_files": len(library) + len(tests)}
    measured = coder.measure(model, tokenizer, validation, coder.CONTEXT)
    export(model, coder.MODEL_FOLDER.with_name(name), facts | {"validation": measured})


def export(model: Any, folder: Path, metrics: dict[str, Any]) -> None:
    """Write the model's files, the tokenizer's beside them, into its folder."""
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(coder.MODEL_FOLDER / name, folder / name)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    """Train the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="steps to train each for")
    steps = parser.parse_args().steps
    for name in SHAPES:
        train(name, steps)


if __name__ == "__main__":
    main()
