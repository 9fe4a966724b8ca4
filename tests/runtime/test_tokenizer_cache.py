"""Tokenizers that the store keeps do what transformers' do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from flashgen_runtime.loader.tokenizer import CheckpointTokenizer, load_tokenizer
from flashgen_runtime.loader.tokenizer_cache import find_kept, keep, read_ahead

SAMPLES = Path(__file__).parents[2] / "samples" / "models"
TEXTS = [
    "",
    " ",
    "import os\n\n\ndef walk(top):\n\treturn  top",
    "Zażółć gęślą jaźń, naïve 中文 🐢",
    "<s>a</s> [CLS] b [SEP] <|endoftext|><tool>  <|pad|> a<tool>b",
    "word " * 300,
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <tool>"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def byte_level(folder: Path) -> None:
    """As the sample, with a token that is no special one, and options that change what is encoded."""
    tokenizer = AutoTokenizer.from_pretrained(
        SAMPLES / "stdlib-coder", add_bos_token=True, truncation_side="left", extra_special_tokens=["<extra>"]
    )
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True)])
    tokenizer.save_pretrained(folder)


def sentencepiece(folder: Path) -> None:
    """Words begin with their space, what is no word is bytes, and a text is put between two special tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b", "o", "r", "d"]
    vocab = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_padding(length=16)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = {"default": TEMPLATE, "tool_use": "tools"}
    fast.save_pretrained(folder)


def word_piece(folder: Path) -> None:
    """A class of its own that builds the library's tokenizer anew."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "import", "os", "def", "a", "##b", "word", "top", "<", ">"]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)


def sample(name: str) -> Any:
    def copy(folder: Path) -> None:
        shutil.copytree(SAMPLES / name, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)

    return copy


KINDS = {
    "stdlib-coder": sample("stdlib-coder"),
    "minilm": sample("all-MiniLM-L6-v2"),
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "word-piece": word_piece,
}


@pytest.fixture(params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    KINDS[request.param](folder)
    return folder


def test_a_kept_tokenizer_does_what_transformers_does(checkpoint: Path, tmp_path: Path) -> None:
    """Ids with and without special tokens, truncated ids, texts, bytes of tokens, chats."""
    theirs = load_tokenizer(checkpoint, vocab_size=1 << 20)
    keep(theirs.tokenizer, checkpoint, tmp_path)
    kept = find_kept(checkpoint, tmp_path)
    assert kept is not None
    ours = CheckpointTokenizer(kept, vocab_size=1 << 20)

    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            assert ours.decode(ids) == theirs.decode(ids)
        for limit in (4, 7, 512):
            truncated = theirs.encode_truncated(text, max_tokens=limit)
            assert ours.encode_truncated(text, max_tokens=limit) == truncated
        assert ours.encode(text, add_special_tokens=True) == theirs.encode(text, add_special_tokens=True)
    every = range(len(theirs.tokenizer) + 2)
    assert [ours.token_bytes(token_id) for token_id in every] == [theirs.token_bytes(token_id) for token_id in every]
    assert kept.all_special_ids == theirs.tokenizer.all_special_ids
    assert kept.chat_template == theirs.tokenizer.chat_template
    for template in (TEMPLATE, "tool_use"):
        options: dict[str, Any] = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        assert kept.apply_chat_template(CHAT, **options) == theirs.tokenizer.apply_chat_template(CHAT, **options)


def test_the_second_load_takes_what_the_first_one_kept(checkpoint: Path, tmp_path: Path) -> None:
    """In another process, which does not import transformers."""
    load_tokenizer(checkpoint, vocab_size=1 << 20, store=tmp_path)
    program = f"""
import sys
sys.modules["transformers"] = None
from pathlib import Path
from flashgen_runtime.loader.tokenizer import load_tokenizer
tokenizer = load_tokenizer(Path({str(checkpoint)!r}), vocab_size=1 << 20, store=Path({str(tmp_path)!r}))
print(tokenizer.encode("import os", add_special_tokens=True))
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    expected = load_tokenizer(checkpoint, vocab_size=1 << 20).encode("import os", add_special_tokens=True)
    assert json.loads(done.stdout or "null") == expected, done.stderr


@pytest.fixture
def coder(tmp_path: Path) -> Path:
    folder = tmp_path / "coder"
    KINDS["stdlib-coder"](folder)
    return folder


def test_a_changed_checkpoint_is_loaded_anew(coder: Path, tmp_path: Path) -> None:
    """Whatever file it was."""
    load_tokenizer(coder, vocab_size=1 << 20, store=tmp_path)
    (coder / "chat_template.jinja").write_text("another")

    assert find_kept(coder, tmp_path) is None
    load_tokenizer(coder, vocab_size=1 << 20, store=tmp_path)
    kept = find_kept(coder, tmp_path)
    assert kept is not None
    assert kept.get_chat_template() == "another"


def test_a_damaged_file_is_made_anew(coder: Path, tmp_path: Path) -> None:
    """A tokenizer is no reason not to start."""
    load_tokenizer(coder, vocab_size=1 << 20, store=tmp_path)
    (file,) = (tmp_path / "tokenizers").iterdir()
    file.write_bytes(file.read_bytes()[:1000])

    assert load_tokenizer(coder, vocab_size=1 << 20, store=tmp_path).encode("a", add_special_tokens=False)
    assert find_kept(coder, tmp_path) is not None


def test_a_store_that_cannot_be_written_keeps_nothing(coder: Path, tmp_path: Path) -> None:
    """The model is served all the same."""
    root = tmp_path / "file"
    root.write_text("no folder")

    assert load_tokenizer(coder, vocab_size=1 << 20, store=root).encode("a", add_special_tokens=False)


def test_a_class_with_methods_of_its_own_is_not_kept(coder: Path, tmp_path: Path) -> None:
    """The library's file does not say what they do."""

    class Special(PreTrainedTokenizerFast):  # type: ignore[misc] # transformers has no types
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "special"

    keep(Special.from_pretrained(coder), coder, tmp_path)

    assert find_kept(coder, tmp_path) is None


def test_two_callers_do_not_share_a_tokenizer(coder: Path, tmp_path: Path) -> None:
    """One that truncates would change what the other one gives."""
    load_tokenizer(coder, vocab_size=1 << 20, store=tmp_path)
    read_ahead(coder, tmp_path)

    assert find_kept(coder, tmp_path) is not find_kept(coder, tmp_path)
