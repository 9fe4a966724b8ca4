"""Writes a model of `benchmarks.models`: random bf16 weights, and a byte-level BPE learned from Python's own library.

Run: python -m benchmarks.make_model NAME FOLDER
"""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.models import SHAPES, ModelShape

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}

# No special token and no end: every completion has the length that its request asks for.
CHAT_TEMPLATE = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"


def main(name: str, folder: Path) -> None:
    """Writes beside `folder` first, so that an interrupted run leaves no half a model."""
    shape = SHAPES[name]
    partial = folder.with_name(folder.name + ".partial")
    train_tokenizer(shape).save_pretrained(partial)
    random_model(shape).save_pretrained(partial)
    GenerationConfig(do_sample=False).save_pretrained(partial)  # type: ignore[no-untyped-call]  # it has no types
    partial.rename(folder)


def random_model(shape: ModelShape) -> LlamaForCausalLM | Qwen3ForCausalLM:
    """The model of that shape, from seed 0."""
    config_class, model_class = CLASSES[shape.family]
    config = config_class(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.is_tied,
        max_position_embeddings=shape.max_context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model: LlamaForCausalLM | Qwen3ForCausalLM = model_class(config).to(torch.bfloat16)
    return model


def train_tokenizer(shape: ModelShape) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `shape.tokenizer_size` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.tokenizer_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_library_sources(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        model_max_length=shape.max_context,
        clean_up_tokenization_spaces=False,
    )


def _library_sources() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
