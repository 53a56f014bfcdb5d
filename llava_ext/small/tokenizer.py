"""A small byte-level tokenizer: every word of a corpus is one token, everything else is spelt in bytes.

Byte-level BPE without merges: text is split by GPT-2's pattern, a piece that is in the vocabulary is one token
(`ignore_merges`, as in Llama 3), any other piece becomes its UTF-8 bytes, so that every string round-trips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from robustmerge.stage.settings import UserError

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
SPECIAL = (BOS, EOS, PAD, IMAGE)


def build_tokenizer(lines: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the special ones, the 256 bytes, and the most frequent words of `lines`.

    A word that begins a line counts both with and without a space before it. Ties are broken by spelling, so the same
    lines give the same bytes on disk. Raises UserError if there is no word at all.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    counts: Counter[str] = Counter()
    for line, count in Counter(_split_lines(lines)).items():
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(line)]
        for piece in [*pieces, splitter.pre_tokenize_str(" " + line)[0][0]]:
            counts[piece] += count
    if not counts:
        raise UserError("the tokenizer's corpus is empty")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))
    tokens = [*SPECIAL, *alphabet, *words][:vocabulary]
    return _wrap({token: index for index, token in enumerate(tokens)}, splitter)


def _split_lines(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        yield from (line for line in text.split("\n") if line.strip())


def _wrap(vocabulary: dict[str, int], splitter: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
