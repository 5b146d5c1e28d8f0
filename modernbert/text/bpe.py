"""Texts -> a new tokenizer, the ModernBERT way: byte-level BPE, case and accents kept, nothing unknown.

Steps: sample the texts in one pass; learn merges on the sample (NFC, the GPT-2 pattern, all 256 bytes); put
[UNK] [CLS] [SEP] [PAD] [MASK] and spare [unusedN] behind them so that the size is exactly the one asked for.
Price: see `train_tokenizer`.

Two departures from the published tokenizer, each measured:

- The space put before the first word (`prefix_space`) is Metaspace's "first", not ByteLevel's
  `add_prefix_space`. The latter puts a space after *every* added token: "the [MASK]." becomes `the|[MASK]|
  .`, an id that follows no mask in training, and decodes with a space too many. `transformers` 4 also
  resets it on loading.
- No added tokens for runs of spaces: BPE learns them, together with the line break before them. On Python
  source held out from training, 3.63 bytes a token without and 3.34 with them (16,384 entries, half code,
  half prose); they help (1.90 -> 2.57) only where the corpus holds no code at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from modernbert.errors import ConfigError, DataError

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
VOCAB_MULTIPLE = 64
MIN_VOCAB_SIZE = 320  # 256 bytes, 5 special tokens, 16 spare ones, and 43 merges to have any
_MIN_COUNT = 2  # a pair seen once says nothing about the language
_PIECE_CHARS = 4096  # no "word" is longer, so that a megabyte of base64 costs no more than prose
_MAX_SAMPLE_BYTES = 2**31 - 1  # tokenizers counts pairs in 32 bits


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: int,
    prefix_space: bool = True,
    sample_bytes: int = 64 * 10**6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Learn a tokenizer from texts. The same texts, in any order, give the same tokenizer.

    Args:
        documents: texts; read once, as a stream.
        vocab_size: entries in all, special and spare ones included; a multiple of 64, 320 or more.
        prefix_space: treat the first word of a text like any other, as if after a space. It lets words given
            pre-split (as in named-entity data) get the ids that they have in running text.
        sample_bytes: upper bound of the sample in UTF-8 bytes; a longer corpus is thinned evenly to
            half of it or more. Memory grows with it: 8 times the sample for English (0.5 GB for 64 MB, 15 s),
            100 times for scripts without spaces (6 GB, extrapolated from 12 MB), whose "words" hardly repeat.
        seed: draws another sample where the corpus is longer than `sample_bytes`.
        progress: called now and then with documents read and bytes held.

    Raises:
        ConfigError: a vocabulary size or sample size that cannot be.
        DataError: the texts support fewer entries than asked for; the message says how many.
    """
    _check_sizes(vocab_size, sample_bytes)
    num_spare = _num_spare(vocab_size)
    num_learnt = vocab_size - len(SPECIAL_TOKENS) - num_spare
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_learnt,
        min_frequency=_MIN_COUNT,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    sample = sample_pieces(documents, sample_bytes, seed=seed, progress=progress)
    tokenizer.train_from_iterator(sample, trainer)
    if (found := tokenizer.get_vocab_size()) < num_learnt:
        raise DataError(_too_little_text(vocab_size, found))
    _add_special_tokens(tokenizer, num_spare)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def sample_pieces(
    documents: Iterable[str],
    sample_bytes: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Draw an even sample of pieces of at most 4,096 characters, `sample_bytes` or less, in one pass.

    A piece stays while its hash is below a bar; whenever the sample grows too large, the bar is halved and
    what is above it leaves. So the sample depends on the texts alone, not on their order.
    """
    kept: list[tuple[int, str, int]] = []
    bar, num_bytes = 2**64, 0
    for num_documents, text in enumerate(documents, start=1):
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            raw = piece.encode()
            digest = hashlib.blake2b(raw, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
            rank = int.from_bytes(digest, "little")
            if rank < bar:
                kept.append((rank, piece, len(raw)))
                num_bytes += len(raw)
            while num_bytes > sample_bytes:
                bar //= 2
                kept = [entry for entry in kept if entry[0] < bar]
                num_bytes = sum(size for _, _, size in kept)
        if progress is not None and num_documents % 1000 == 0:
            progress(num_documents, num_bytes)
    return [piece for _, piece, _ in kept]


def _pre_tokenizer(*, prefix_space: bool) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not prefix_space:
        return byte_level
    # A space for a space: all that Metaspace does here is to put one before the first word.
    first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
    return pre_tokenizers.Sequence([first, byte_level])


def _add_special_tokens(tokenizer: Tokenizer, num_spare: int) -> None:
    # [MASK] takes the space before it, because the word that it stands for carries its own.
    names = [*SPECIAL_TOKENS, *(f"[unused{index}]" for index in range(num_spare))]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, lstrip=name == "[MASK]", normalized=False) for name in names]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:0 [SEP]:0",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )


def _num_spare(vocab_size: int) -> int:
    """Spare entries for tokens that a user adds later: 83 as in the published tokenizer, 16 in small ones."""
    return 83 if vocab_size >= 16_384 else 16


def _check_sizes(vocab_size: int, sample_bytes: int) -> None:
    below = vocab_size // VOCAB_MULTIPLE * VOCAB_MULTIPLE
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"vocab_size={vocab_size} is too small; the least is {MIN_VOCAB_SIZE}")
    if vocab_size != below:
        raise ConfigError(
            f"vocab_size={vocab_size} is not a multiple of {VOCAB_MULTIPLE}, which slows a GPU down; "
            f"take {below} or {below + VOCAB_MULTIPLE}"
        )
    if not 0 < sample_bytes <= _MAX_SAMPLE_BYTES:
        raise ConfigError(f"sample_bytes={sample_bytes} is out of range; it may be 1 to {_MAX_SAMPLE_BYTES}")


def _too_little_text(vocab_size: int, num_learnt: int) -> str:
    """`num_learnt` entries (bytes and merges) are all that the texts gave."""
    supported = num_learnt + len(SPECIAL_TOKENS) + 16
    if supported >= 16_384 + 83 - 16:
        supported = num_learnt + len(SPECIAL_TOKENS) + 83
    nearest = supported // VOCAB_MULTIPLE * VOCAB_MULTIPLE
    remedy = f"ask for --vocab-size {nearest}, or " if nearest >= MIN_VOCAB_SIZE else ""
    return (
        f"the text supports {supported:,} entries, and vocab_size={vocab_size:,} asks for more; {remedy}give more text"
    )
