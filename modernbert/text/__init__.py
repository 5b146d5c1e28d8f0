"""Raw text -> tokens: files become documents, documents become shards of token ids.

In: paths of text, Markdown, code, JSON lines, tables and MDS shards, or names of datasets. Out: a trained tokenizer,
and a folder of shards that training maps into memory. The way: `read` -> `clean` and `filters` -> `bpe` and
`tokenizer` -> `build` -> `shards`; `mds` goes straight from MDS shards of ids to these; `report` says how well a
tokenizer fits a language.
"""

from modernbert.text.bpe import train_tokenizer
from modernbert.text.build import build_shards
from modernbert.text.clean import document_hash, drop_duplicates_and_short
from modernbert.text.filters import Filters
from modernbert.text.mds import import_mds
from modernbert.text.read import Skips, iter_documents
from modernbert.text.report import format_report, tokenizer_report
from modernbert.text.shards import Shards, read_manifest, summarize
from modernbert.text.tokenizer import (
    SpecialIds,
    adds_prefix_space,
    for_plain_text,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_ids,
    tokenizer_fingerprint,
)

__all__ = [
    "Filters",
    "Shards",
    "Skips",
    "SpecialIds",
    "adds_prefix_space",
    "build_shards",
    "document_hash",
    "drop_duplicates_and_short",
    "for_plain_text",
    "format_report",
    "import_mds",
    "iter_documents",
    "load_tokenizer",
    "num_ids",
    "read_manifest",
    "save_tokenizer",
    "special_ids",
    "summarize",
    "tokenizer_fingerprint",
    "tokenizer_report",
    "train_tokenizer",
]
