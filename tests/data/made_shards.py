"""Shards without a build: documents of given lengths and drawn ids, the same under any version of any library."""

import json

import numpy as np
from tokenizers import Tokenizer, models

from modernbert.text.shards import FORMAT_VERSION, MANIFEST, PREFIXES, length_histogram

SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
VOCAB_SIZE = 1000


def words(vocab_size=VOCAB_SIZE, prefix="w"):
    """A tokenizer of five special tokens and w5, w6, …: no id depends on the version of any library."""
    vocabulary = {name: number for number, name in enumerate(SPECIALS)}
    vocabulary |= {f"{prefix}{number}": number for number in range(len(SPECIALS), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def make_shards(folder, lengths, *, heldout=None, scores=None, seed=0, prefix="w", drawn=True):
    """One shard a split. Ids are drawn, evenly from all ordinary ones; or all 0, in files that take no room."""
    folder.mkdir(parents=True)
    splits = {}
    for split, sizes in {"train": lengths, "heldout": heldout}.items():
        sizes = np.asarray([] if sizes is None else sizes, dtype=np.int64)
        name = f"{PREFIXES[split]}-00000"
        if len(sizes):
            with (folder / f"{name}.bin").open("wb") as file:
                if drawn:
                    ids = np.random.Generator(np.random.Philox(seed)).integers(5, VOCAB_SIZE, int(sizes.sum()))
                    file.write(ids.astype("<u2").tobytes())
                file.truncate(2 * int(sizes.sum()))
            (folder / f"{name}.idx").write_bytes(np.concatenate([[0], np.cumsum(sizes)]).astype("<u8").tobytes())
            if scores is not None:
                (folder / f"{name}.score").write_bytes(np.asarray(scores, dtype="<f4").tobytes())
        shard = {"name": name, "documents": len(sizes), "tokens": int(sizes.sum()), "sha256": "made"}
        splits[split] = {
            "documents": len(sizes), "tokens": int(sizes.sum()), "text_bytes": 4 * int(sizes.sum()),
            "shards": [shard] if len(sizes) else [], "lengths": length_histogram(sizes) if len(sizes) else [],
        }  # fmt: skip
    words(prefix=prefix).save(str(folder / "tokenizer.json"))
    manifest = {
        "format": "modernbert-shards", "version": FORMAT_VERSION, "dtype": "uint16", "vocab_size": VOCAB_SIZE,
        "tokenizer": f"made-{prefix}", "splits": splits, "skipped": {}, "scores": scores is not None,
        "settings": {"heldout": 0.0, "sources": []},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
