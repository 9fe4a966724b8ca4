"""Train and evaluate ``stdlib-coder``, a small code completion model, on a CPU.

It learns from the source of the running Python's standard library and goes into the folder beside
this file. With ``--evaluate`` the stored model is read by transformers and measured against xz on
files never trained on; the numbers go to the folder's ``metrics.json``.
"""

import argparse
import itertools
import json
import lzma
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from stdlib_corpus import SEED, read_corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MODEL_FOLDER = Path(__file__).resolve().parent / "stdlib-coder"

# Tokenizer. A run of line feeds and an indentation are tokens of their own, so that a prompt
# which ends after either is cut in the same way as the text in training.
VOCABULARY = 3072
END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
SPLIT_PATTERN = r"\n+| {2,}|[^\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s"
# The completion goes on where the given code ends, so a chat is nothing but its contents, joined.
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] != 'system' -%}"
    "{{- message['content'] -}}{%- endif -%}{%- endfor -%}"
)

# Model: just below 4 million parameters, so that the file in bfloat16 stays below 8 MB.
CONTEXT = 2048

# Training: short sequences for most of it as they are cheaper, the full context while the
# learning rate falls to zero, with more of the library and less of its tests.
TOKENS_PER_STEP = 8192
TOKENS_AT_ONCE = 2048  # what is at work at once stays in the processor's cache
STABLE_LENGTH, STABLE_LIBRARY_REPEATS = 512, 2
DECAY_PART, DECAY_LIBRARY_REPEATS = 0.2, 4
MATRIX_RATE, OTHER_RATE, MATRIX_WEIGHT_DECAY = 0.02, 0.004, 0.05
WARMUP_STEPS, CHECK_STEPS = 60, 100
Optimizers = tuple[torch.optim.Optimizer, ...]


def train_tokenizer(texts: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary from the texts."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_byte])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return a document's tokens between two end-of-text tokens."""
    tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return torch.tensor([tokenizer.eos_token_id, *tokens, tokenizer.eos_token_id])


def block_attention(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, scaling: float, **___: Any
) -> tuple[Tensor, None]:
    """Causal attention by blocks of queries; on a CPU faster to train than the fused kernel."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    size = max(128, length // 8)
    query = (query * scaling).view(batch, groups, heads // groups, length, width)
    future = torch.full((size, size), -math.inf).triu(1)
    outputs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        rows = query[:, :, :, start:end].flatten(2, 3)
        scores = (rows @ key[:, :, :end].transpose(-1, -2)).float()
        scores = scores.view(batch, groups, -1, end - start, end)
        scores = scores + F.pad(future[: end - start, : end - start], (start, 0))
        weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
        outputs.append((weights @ value[:, :, :end]).view(batch, groups, -1, end - start, width))
    joined = torch.cat(outputs, dim=3).view(batch, heads, length, width)
    return joined.transpose(1, 2).contiguous(), None


def new_model(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.Qwen3ForCausalLM:
    """Return an untrained model whose residual branches start at zero."""
    transformers.AttentionInterface.register("block", block_attention)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=576,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.Qwen3ForCausalLM(config)
    model.set_attn_implementation("block")
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            nn.init.zeros_(parameter)
    return model


def token_losses(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each target in nats."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    logits = F.linear(hidden, model.lm_head.weight).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


@torch.no_grad()
def document_loss(model: Any, tokens: Tensor, window: int) -> float:
    """Return a document's loss in nats, each token with the half of a window before it."""
    total, done, last = 0.0, 0, len(tokens) - 1
    while done < last:
        end = min(last, max(window, done + window // 2))
        start = max(0, end - window)
        losses = token_losses(model, tokens[None, start:end], tokens[None, start + 1 : end + 1])
        total += float(losses[done - start :].sum())
        done = end
    return total


def measure(model: Any, tokenizer: Any, texts: Sequence[str], window: int) -> dict[str, float]:
    """Return the loss per token in nats and the bits per byte over the texts."""
    documents = [encode(tokenizer, text) for text in texts]
    loss = sum(document_loss(model, document, window) for document in documents)
    tokens = sum(len(document) - 1 for document in documents)
    size = sum(len(text.encode()) for text in texts)
    return {"loss": loss / tokens, "bits_per_byte": loss / math.log(2) / size}


def batches(documents: list[Tensor], length: int) -> Iterator[Tensor]:
    """Yield each step's windows, shuffled anew for each pass over the documents, without end."""
    documents = [document[:-1] for document in documents]
    steps, rows = sum(map(len, documents)) // TOKENS_PER_STEP - 1, TOKENS_PER_STEP // length
    for epoch in itertools.count():
        order = random.Random(SEED + epoch)
        order.shuffle(documents)
        stream = torch.cat(documents)[order.randrange(length) :]
        windows = stream.unfold(0, length + 1, length)
        windows = windows[order.sample(range(len(windows)), len(windows))]
        yield from (windows[step * rows : (step + 1) * rows] for step in range(steps))


def new_optimizers(model: nn.Module) -> Optimizers:
    """Return Muon for the matrices of the layers and AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "layers" not in n]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=MATRIX_WEIGHT_DECAY)
    return muon, torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0)


def set_rates(optimizers: Optimizers, step: int, steps: int) -> None:
    """Warm the learning rates up, hold them, and let them fall to zero in the last part."""
    part = min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_PART * steps))
    for optimizer, rate in zip(optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = part * rate


def train_step(model: Any, optimizers: Optimizers, losses: Any, windows: Tensor) -> None:
    """Learn from the windows of one step, a part of them at a time."""
    rows = TOKENS_AT_ONCE // (windows.shape[1] - 1)
    for first in range(0, len(windows), rows):
        part = windows[first : first + rows]
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(model, part[:, :-1], part[:, 1:].contiguous()).sum() / TOKENS_PER_STEP
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def train(steps: int, work: Path) -> None:
    """Train a model, from the checkpoint in ``work`` where there is one, and export it."""
    torch.manual_seed(SEED)
    corpus = read_corpus()
    tokenizer = train_tokenizer([corpus.texts[name] for name in corpus.library])
    library = [encode(tokenizer, corpus.texts[name]) for name in corpus.library]
    tests = [encode(tokenizer, corpus.texts[name]) for name in corpus.tests]
    decay_start = round((1 - DECAY_PART) * steps)
    stable = batches(library * STABLE_LIBRARY_REPEATS + tests, STABLE_LENGTH)
    decay = batches(library * DECAY_LIBRARY_REPEATS + tests, CONTEXT)
    plan = itertools.chain(itertools.islice(stable, decay_start), decay)
    model = new_model(tokenizer)
    optimizers = new_optimizers(model)
    losses = torch.compile(token_losses, dynamic=False)
    validation = [corpus.texts[name] for name in corpus.validation]
    # The steps before the decay are the same for any number of steps, so a longer run goes on here.
    first, checkpoint = 0, work / "stable.pt"
    parts: list[Any] = [model, *optimizers]
    if checkpoint.exists():
        first, states = torch.load(checkpoint)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    for step, windows in enumerate(itertools.islice(plan, first, steps), first):
        set_rates(optimizers, step, steps)
        train_step(model, optimizers, losses, windows)
        if (step + 1) % CHECK_STEPS == 0:
            print(step + 1, measure(model, tokenizer, validation, windows.shape[1] - 1), flush=True)
            if step < decay_start:
                torch.save((step + 1, [part.state_dict() for part in parts]), checkpoint)
    facts = {"seed": SEED, "parameters": model.num_parameters(), "steps": steps}
    facts |= {"tokens_seen": steps * TOKENS_PER_STEP, "training_files": len(library) + len(tests)}
    measured = measure(model, tokenizer, validation, CONTEXT)
    files = {"validation_files": corpus.validation, "held_out_files": corpus.held_out}
    export(model, tokenizer, facts | {"validation": measured} | files)


def export(model: Any, tokenizer: Any, metrics: dict[str, Any]) -> None:
    """Write the model's files into a folder beside its own, then move each into its place."""
    beside = MODEL_FOLDER.with_suffix(".new")
    model.to(torch.bfloat16).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    (beside / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    MODEL_FOLDER.mkdir(exist_ok=True)
    for path in beside.iterdir():
        path.chmod(0o644)
        path.replace(MODEL_FOLDER / path.name)
    beside.rmdir()


def evaluate() -> None:
    """Measure the stored model and xz on the held-out files, and add both to the metrics."""
    corpus = read_corpus()
    path = MODEL_FOLDER / "metrics.json"
    metrics = json.loads(path.read_text())
    if metrics["held_out_files"] != corpus.held_out:
        raise SystemExit("the model was trained on the library of another version of Python")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    texts = [corpus.texts[name] for name in corpus.held_out]
    size = sum(len(text.encode()) for text in texts)
    alone = sum(len(lzma.compress(text.encode(), preset=9)) for text in texts)
    together = len(lzma.compress("".join(texts).encode(), preset=9))
    xz = {"alone_bits_per_byte": 8 * alone / size, "together_bits_per_byte": 8 * together / size}
    measured = measure(model, tokenizer, texts, CONTEXT)
    found = {"held_out": {"bytes": size} | measured, "held_out_xz": xz}
    print(json.dumps(found, indent=2))
    path.write_text(json.dumps(metrics | found, indent=2) + "\n")


def main() -> None:
    """Train the model, or evaluate the stored one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluate", action="store_true", help="measure the stored model and xz")
    parser.add_argument("--steps", type=int, default=1000, help="steps to train for")
    parser.add_argument("--work", type=Path, default=Path(), help="folder of the checkpoint")
    arguments = parser.parse_args()
    if arguments.evaluate:
        evaluate()
    else:
        train(arguments.steps, arguments.work)


if __name__ == "__main__":
    main()
