"""Tags as people write them -> BIO; and entities given by characters -> words with tags.

    IO, IOB1       I-x that begins an entity becomes B-x
    BILOU, BIOES   L, E, M -> I; U, S -> B
    no prefixes    beside "O": runs of one tag are an entity; without any "O" (parts of speech): kept as they are

Words of a text are those of `word_spans`. An entity that ends inside a word cuts it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from modernbert.errors import DataError
from modernbert.text.examples import OUTSIDE
from modernbert.text.labelled_words import word_spans

_PREFIXED = re.compile(r"([BILUESM])-(.+)", re.DOTALL)
_TO_BIO = {"B": "B", "I": "I", "L": "I", "E": "I", "M": "I", "U": "B", "S": "B"}
_STRANGE = re.compile(r"[BI][_:/.].+|.+[-_][BI]", re.DOTALL)  # a prefix with another separator, or behind
_UNNAMED = "entity"
_SPAN_KEYS = (
    ("start", "start_offset", "begin"),
    ("end", "end_offset", "stop"),
    ("label", "type", "entity_group", "tag"),
)


def to_bio(rows: Sequence[Sequence[str]], source: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Write the tags of a whole file as BIO.

    Args:
        rows: tags of each sentence.
        source: the file, for messages.

    Returns:
        As many tags, and what was done to them.

    Raises:
        DataError: tags of no known scheme, or of several.
    """
    tags = set(itertools.chain.from_iterable(rows)) - {OUTSIDE}
    prefixed = {tag: (found[1], found[2]) for tag in tags if (found := _PREFIXED.fullmatch(tag))}
    bare = tags - prefixed.keys()
    strange = next(iter(sorted(tag for tag in bare if _STRANGE.fullmatch(tag))), None)
    if strange is not None or "" in bare or (bare and prefixed):
        odd = strange if strange is not None else min(bare)
        beside = f" beside {min(prefixed)!r}" if prefixed else ""
        raise DataError(f"{source}: the tag {odd!r}{beside} is no BIO tag; write B-x, I-x and O")
    remarks: list[str] = []
    if bare and bare <= _TO_BIO.keys():
        prefixed = {tag: (tag, _UNNAMED) for tag in bare}
        remarks.append(f"tags without a type were taken as of type {_UNNAMED!r}")
    elif bare and any(OUTSIDE in row for row in rows):
        prefixed = {tag: ("I", tag) for tag in bare}
        remarks.append("tags without B- and I-: neighbouring words of one type were taken as one entity")
    elif bare:
        return [tuple(row) for row in rows], ["no tag is O and none begins with B-: each word is tagged on its own"]
    scheme = {prefix for prefix, _ in prefixed.values()} - {"B", "I"}
    if scheme:
        remarks.append(f"tags {', '.join(sorted(scheme))}- became BIO: as B- where an entity begins, else I-")
    renamed = {tag: f"{_TO_BIO[prefix]}-{kind}" for tag, (prefix, kind) in prefixed.items()} | {OUTSIDE: OUTSIDE}
    plain = [[renamed[tag] for tag in row] for row in rows]
    begun, num_repaired = begin_entities(plain)
    if num_repaired and not (bare or scheme):
        remarks.append(
            f"IOB1 tags: {num_repaired:,} I- that begin an entity became B-"
            if _is_iob1(plain)
            else f"{num_repaired:,} I- without a B- before them became B-"
        )
    elif num_repaired and scheme:
        remarks.append(f"{num_repaired:,} I- without a B- before them became B-")
    return begun, remarks


def begin_entities(rows: Iterable[Sequence[str]]) -> tuple[list[tuple[str, ...]], int]:
    """B- for each I- that has no B- or I- of its type before it, and how many there were."""
    count, begun = 0, []
    for row in rows:
        new: list[str] = []
        for before, tag in zip([OUTSIDE, *row], row, strict=False):
            is_orphan = tag.startswith("I-") and before[2:] != tag[2:]
            new.append("B-" + tag[2:] if is_orphan else tag)
            count += is_orphan
        begun.append(tuple(new))
    return begun, count


def _is_iob1(rows: Iterable[Sequence[str]]) -> bool:
    """Whether B- stands only where two entities of one type touch."""
    return all(
        before != OUTSIDE and before[2:] == tag[2:]
        for row in rows
        for before, tag in zip([OUTSIDE, *row], row, strict=False)
        if tag.startswith("B-")
    )


def tag_names(rows: Iterable[Sequence[str]]) -> list[str]:
    """All that a tagger must know: O first, then B- and I- of each type, also where one of them does not occur."""
    tags = set(itertools.chain.from_iterable(rows))
    if not any(tag == OUTSIDE or tag.startswith(("B-", "I-")) for tag in tags):
        return sorted(tags)
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted({tag[2:] for tag in tags - {OUTSIDE}}) for prefix in "BI")]


def tags_of_entities(
    text: str, entities: Any, where: str
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...], int, int]:
    """Words and tags of a text with entities in it.

    Args:
        text: the text.
        entities: a list of {start, end, label} or of (start, end, label), or a dict of three lists; by characters.
        where: file and line, for messages.

    Returns:
        Spans of the words; their tags; how many words were cut; how many entities were left out, because a longer one
        shares characters with them.

    Raises:
        DataError: one that is not in the text, or not of that form.
    """
    spans = sorted({_span(text, entity, where) for entity in _listed(entities, where)})
    kept: list[tuple[int, int, str]] = []
    for span in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if all(span[1] <= start or end <= span[0] for start, end, _ in kept):
            kept.append(span)
    words = word_spans(text)
    cuts = sorted({place for start, end, _ in kept for place in (start, end)})
    pieces = [
        piece
        for start, end in words
        for piece in itertools.pairwise([start, *(cut for cut in cuts if start < cut < end), end])
    ]
    begins = {start: (end, label) for start, end, label in kept}
    tags, inside = [], (0, "")
    for start, _ in pieces:
        if start in begins:
            inside = begins[start]
            tags.append(f"B-{inside[1]}")
        else:
            tags.append(f"I-{inside[1]}" if start < inside[0] else OUTSIDE)
    return tuple(pieces), tuple(tags), len(pieces) - len(words), len(spans) - len(kept)


def _listed(entities: Any, where: str) -> list[Any]:
    if isinstance(entities, dict):  # of lists, as `datasets` keeps a list of dicts
        keys, columns = list(entities), list(entities.values())
        if columns and all(isinstance(column, list) for column in columns) and len(set(map(len, columns))) == 1:
            return [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(entities, list | tuple):
        what = "nothing" if entities is None else f"{entities!r:.40}"
        raise DataError(
            f"{where}: the entities are {what}, not a list of {{start, end, label}}; say --tags-column with another"
        )
    return list(entities)


def _span(text: str, entity: Any, where: str) -> tuple[int, int, str]:
    """(first character, behind the last, type), without white space at its ends."""
    if isinstance(entity, dict):
        found = [next((entity[name] for name in names if name in entity), None) for names in _SPAN_KEYS]
    else:
        found = list(entity) if isinstance(entity, list | tuple) else []
    start, end, label = found if len(found) == 3 else (None, None, None)
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str) and label.strip()):
        raise DataError(f"{where}: {entity!r} is no entity; write {{start, end, label}}, by characters")
    inner = text[max(start, 0) : max(end, 0)]
    if not 0 <= start < end <= len(text) or not inner.strip():
        raise DataError(
            f"{where}: the entity {start} to {end} ({label}) is none in a text of {len(text)} characters; offsets count "
            "characters from 0, and the end is behind the last"
        )
    told = entity.get("text", entity.get("word")) if isinstance(entity, dict) else None
    if isinstance(told, str) and told.strip() != inner.strip():
        raise DataError(
            f"{where}: the entity {start} to {end} says {told!r} and the text has {inner!r} there; offsets count characters "
            "(not bytes), from 0"
        )
    return start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip()), label.strip()
