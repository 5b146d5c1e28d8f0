"""A text → the passages that are indexed: stretches that respect its structure and fit the encoder, with their places.

    text → blocks (functions, sections, paragraphs) → joined while they fit and belong together → longer ones are cut

| what it is | blocks | heading |
|---|---|---|
| Python | functions and methods with their decorators and comments; what lies between them | `Class.method` |
| Markdown, reStructuredText | paragraphs and fenced code, within one section | the titles above, `A > B` |
| other source code | stretches that begin at the margin behind a blank line | – |
| other text | paragraphs | – |

A block that is too long is cut behind its last blank line, line, sentence or word that fits, and where there is none between two
tokens. Passages do not overlap, and nothing but white space lies between them: `text[start:end]` is the passage.
Price: each block is tokenised once, some 1 MB of text a second on one core.
"""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from tokenizers import Tokenizer

from modernbert.text.read import CODE_SUFFIXES
from modernbert.text.tokenizer import kept_copy

Structure = Literal["python", "markup", "code", "prose"]

_MARKUP = frozenset({".md", ".markdown", ".rst"})
_TITLE = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#])\1{2,}[ \t]*$")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_CUTS = (  # places behind which a block may be cut, the best first
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile(r"[.!?][\"')\]]*\s|[。!?;]"),
    re.compile(r"\s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A passage of a text."""

    text: str
    start: int  # its first character
    end: int  # the one behind its last
    heading: str = ""  # what it belongs to


@dataclass(frozen=True, slots=True)
class _Block:
    """A stretch that is not cut unless it is too long."""

    start: int
    end: int
    heading: str = ""
    alone: bool = False  # never joined with its neighbours


def structure_of(name: str) -> Structure:
    """How a file of this name is built."""
    suffix = PurePath(name).suffix.lower()
    if suffix in (".py", ".pyi"):
        return "python"
    return "markup" if suffix in _MARKUP else "code" if suffix in CODE_SUFFIXES else "prose"


def chunks_of(text: str, structure: Structure, tokenizer: Tokenizer, max_tokens: int) -> list[Chunk]:
    """Cut a text into passages.

    Args:
        text: any.
        structure: how it is built.
        tokenizer: the encoder's.
        max_tokens: of a passage, special tokens not counted.

    Returns:
        Passages in order, none of them empty; none at all of a text of white space.
    """
    assert max_tokens > 0
    blocks = [trimmed for block in _blocks(text, structure) if (trimmed := _trimmed(text, block)) is not None]
    encodings = kept_copy(tokenizer).encode_batch([text[b.start : b.end] for b in blocks], add_special_tokens=False)
    fitting: list[tuple[_Block, int]] = []
    for block, encoding in zip(blocks, encodings, strict=True):
        if len(encoding) <= max_tokens:
            fitting.append((block, len(encoding)))
        else:
            fitting += _cut(text, block, encoding.offsets, max_tokens)
    return [
        Chunk(text=text[b.start : b.end], start=b.start, end=b.end, heading=b.heading)
        for b in _joined(fitting, max_tokens)
    ]


def _trimmed(text: str, block: _Block) -> _Block | None:
    """Without white space around it; None where nothing else is in it."""
    inner = text[block.start : block.end]
    start = block.start + len(inner) - len(inner.lstrip())
    end = block.end - (len(inner) - len(inner.rstrip()))
    return _Block(start, end, block.heading, block.alone) if start < end else None


def _joined(blocks: Sequence[tuple[_Block, int]], max_tokens: int) -> Iterator[_Block]:
    """Neighbours of one heading together, as far as they fit."""
    open_block: _Block | None = None
    filled = 0
    for block, num_tokens in blocks:
        # White space between two is at most a token a character.
        more = num_tokens + (0 if open_block is None else block.start - open_block.end)
        fits = open_block is not None and filled + more <= max_tokens
        if open_block is not None and fits and not (block.alone or open_block.alone) and (
            block.heading == open_block.heading
        ):  # fmt: skip
            open_block = _Block(open_block.start, block.end, block.heading)
            filled += more
            continue
        if open_block is not None:
            yield open_block
        open_block, filled = block, num_tokens
    if open_block is not None:
        yield open_block


def _cut(text: str, block: _Block, offsets: Sequence[tuple[int, int]], max_tokens: int) -> Iterator[tuple[_Block, int]]:
    """A block that is too long → parts that fit, with their tokens."""
    first, begin = 0, block.start
    while first < len(offsets) and begin < block.end:
        behind, end = len(offsets), block.end
        if behind - first > max_tokens:
            behind = first + max_tokens
            end = _place_to_cut(text, begin, max(block.start + offsets[behind][0], begin + 1))
            # A token that reaches over the cut, such as a word with the space before it, is the next part's.
            while behind > first and block.start + offsets[behind - 1][1] > end:
                behind -= 1
            while behind < len(offsets) and block.start + offsets[behind][1] <= end:  # bytes of one character
                behind += 1
        part = _trimmed(text, _Block(begin, end, block.heading, block.alone))
        if part is not None:
            yield part, behind - first + 1  # its first word may have been cut from its space
        first, begin = behind, end


def _place_to_cut(text: str, begin: int, limit: int) -> int:
    """Behind the last good place of the later half, else at the limit."""
    window = text[begin:limit]
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(window, len(window) // 2)]
        if ends:
            return begin + ends[-1]
    return limit


# --- blocks


def _blocks(text: str, structure: Structure) -> Iterable[_Block]:
    if structure == "python":
        try:
            return _of_python(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # another Python, or no whole file
            structure = "code"
    if structure == "markup":
        return _of_markup(text)
    return _between(
        text, [m.end() for m in re.finditer(r"\n[ \t]*\n(?=\S)" if structure == "code" else r"\n\s*\n", text)]
    )


def _between(text: str, cuts: Iterable[int], heading: str = "", begin: int = 0, end: int | None = None) -> list[_Block]:
    places = [begin, *cuts, len(text) if end is None else end]
    return [_Block(a, b, heading) for a, b in itertools.pairwise(places) if a < b]


def _of_python(text: str) -> list[_Block]:
    """Functions alone, with what names them; classes' heads and a module's other lines between them."""
    starts = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]  # of lines, as Python counts them
    found: list[tuple[int, int, str]] = []  # first line, line behind, heading

    def visit(body: Iterable[ast.AST], names: tuple[str, ...]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(
                    (_first_line(node, text, starts), node.end_lineno or node.lineno, ".".join((*names, node.name)))
                )
            elif isinstance(node, ast.ClassDef):
                visit(node.body, (*names, node.name))
            else:
                for part in ("body", "orelse", "finalbody", "handlers"):
                    visit(getattr(node, part, []), names)

    with warnings.catch_warnings():  # of what is read, which is nobody's business here
        warnings.simplefilter("ignore")
        visit(ast.parse(text).body, ())
    blocks: list[_Block] = []
    behind = 0  # in lines
    for first, last, heading in sorted(found):
        if first < behind:  # on the line of the one before
            continue
        blocks += _other_lines(text, starts, behind, first)
        blocks.append(_Block(starts[first], _start_of(starts, last, text), heading, alone=True))
        behind = last
    return blocks + _other_lines(text, starts, behind, len(starts))


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef, text: str, starts: Sequence[int]) -> int:
    """Of a function with its decorators and the comments right above it, from 0."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    while first > 0 and text[starts[first - 1] : starts[first]].lstrip().startswith("#"):
        first -= 1
    return first


def _other_lines(text: str, starts: Sequence[int], first: int, behind: int) -> list[_Block]:
    begin, end = _start_of(starts, first, text), _start_of(starts, behind, text)
    cuts = [match.end() for match in re.compile(r"\n[ \t]*\n(?=\S)").finditer(text, begin, end)]
    return _between(text, cuts, begin=begin, end=end)


def _start_of(starts: Sequence[int], line: int, text: str) -> int:
    return starts[line] if line < len(starts) else len(text)


def _of_markup(text: str) -> list[_Block]:
    """Paragraphs under their titles; fenced code is one block."""
    blocks: list[_Block] = []
    titles: list[tuple[int, str]] = []
    underlines: dict[str, int] = {}
    fence = ""
    begin = place = 0
    lines = text.splitlines(keepends=True)

    def close(end: int) -> None:
        if begin < end:
            blocks.append(_Block(begin, end, " > ".join(title for _, title in titles)))

    for index, line in enumerate(lines):
        marker = _FENCE.match(line)
        if fence:
            fence = "" if marker and marker[1].startswith(fence) else fence
        elif marker:
            fence = marker[1]
        elif found := _title(line, lines[index + 1] if index + 1 < len(lines) else "", underlines):
            close(place)
            begin = place
            level, title = found
            titles = [*((higher, name) for higher, name in titles if higher < level), (level, title)]
        elif not line.strip():
            close(place)
            begin = place
        place += len(line)
    close(len(text))
    return blocks


def _title(line: str, after: str, underlines: dict[str, int]) -> tuple[int, str] | None:
    """The level of a title and its words; underlined ones rank in the order in which a text first has them."""
    if match := _TITLE.match(line.rstrip("\r\n")):
        return len(match[1]), match[2].strip()
    match = _UNDERLINE.match(after.rstrip("\r\n"))
    words = line.strip()
    if match and words and not _UNDERLINE.match(line.rstrip("\r\n")) and len(after.rstrip()) >= min(3, len(words)):
        return underlines.setdefault(match[1], len(underlines) + 1), words
    return None
