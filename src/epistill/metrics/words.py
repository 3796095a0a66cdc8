r"""What a word is, for a regular expression and for whole buffers: one definition.

A word is a run of word characters (Python's `\w`), apostrophes inside it included; a Chinese
character or Japanese kana is a word by itself, since no spaces separate words there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Iteration marks, kana, and the Han blocks (Unicode 15), as ranges of a character class.
CJK = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U000323af"
)
_CJK_RANGES = tuple((ord(part[0]), ord(part[2])) for part in re.findall(".-.", CJK))
Ints = NDArray[np.int64]

# A word character of a language that separates words; its neighbours decide word boundaries.
SPACED = rf"[^\W{CJK}]"
WORD = re.compile(rf"{SPACED}+(?:['’]{SPACED}+)*|[{CJK}]")

# Classes of the bytes of a buffer; 0 is everything else, the rest of a CJK character too, so that a
# word begins wherever the class grows.
SPACED_CLASS, _CJK_FIRST = 1, 2
_CAPITAL = 4  # in the table, beside the class: a letter that `fold` changes
# Between texts of a buffer, and around it, so that neighbours exist; no UTF-8 text holds this byte.
SEPARATOR = b"\xff"


def count_words(text: str) -> int:
    """Number of words: runs of word characters, and each Chinese character or kana.

    Example:
        >>> count_words("Don't stop at 3.5, wait")
        6
        >>> count_words("等等, wait")
        3
    """
    return sum(1 for _ in WORD.finditer(text))


def needs_boundary(character: str) -> bool:
    """Whether a word that begins or ends with this character must stop there: not so in Chinese."""
    return re.fullmatch(SPACED, character) is not None


def on_word_boundaries(phrase: str) -> str:
    """A pattern of a folded phrase that starts and stops where words do, for folded text."""
    left = f"(?<!{SPACED})" if needs_boundary(phrase[0]) else ""
    right = f"(?!{SPACED})" if needs_boundary(phrase[-1]) else ""
    return left + re.escape(phrase) + right


def fold(text: str) -> str:
    """Lower case and straight apostrophes, the number of characters unchanged (İ stays).

    Example:
        >>> fold("DON’T İ")
        "don't İ"
    """
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = "".join(low if len(low := c.lower()) == 1 else c for c in text)
    return lowered.replace("’", "'")


@dataclass(frozen=True, slots=True)
class Buffer:
    """Many folded texts as one array of bytes, with their words.

    Attributes:
        data: The UTF-8 bytes, SEPARATOR between texts and around them.
        starts, stops: [texts] byte ranges.
        classes: [bytes] of uint8: 1 for word characters of languages with spaces, 2 for the first
            byte of a Chinese character or kana, else 0.
        begins: [bytes // 64 + 1] of uint64: a bit for each byte, set where a word begins.
        counted: [bytes // 64 + 1] words that begin before each of these blocks of 64 bytes.
    """

    data: bytes
    starts: Ints
    stops: Ints
    classes: NDArray[np.uint8]
    begins: NDArray[np.uint64]
    counted: Ints

    @property
    def word_starts(self) -> Ints:
        """[words] positions, in order."""
        return np.flatnonzero(np.unpackbits(self.begins.view(np.uint8), bitorder="little"))

    def text_of(self, positions: Ints) -> Ints:
        """Which text each position lies in."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def cjk_words(self) -> Ints:
        """Positions of Chinese characters and kana."""
        if self.classes.max() < _CJK_FIRST:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.classes == _CJK_FIRST)

    def words_before(self, positions: Ints) -> Ints:
        """How many words begin before each position; counting bits beats a binary search."""
        block, bit = positions >> 6, (positions & 63).astype(np.uint64)
        before = self.begins[block] & ((np.uint64(1) << bit) - np.uint64(1))
        return self.counted[block] + np.bitwise_count(before)


def make_buffer(texts: list[str]) -> Buffer:
    """Fold texts, join them, find their words; lone surrogates become U+FFFD.

    Example:
        >>> buffer = make_buffer(["Don't stop", "等 x"])
        >>> [buffer.data[p : p + 1] for p in buffer.word_starts[[0, 1, 3]]]
        [b'd', b's', b'x']
    """
    buffer = _make_buffer([_fold_ascii(text) for text in texts])
    if buffer is None:
        buffer = _make_buffer([_fold_ascii(fold(text)) for text in texts])
        assert buffer is not None, "folding left a capital"
    return buffer


def _fold_ascii(text: str) -> bytes:
    """`fold` for texts whose only capitals are ASCII, several times faster."""
    return _encode(text if text.isascii() else text.replace("’", "'")).lower()


def _make_buffer(parts: list[bytes]) -> Buffer | None:
    """None where a capital beyond ASCII stands."""
    data = SEPARATOR.join([b"", *parts, SEPARATOR * 3])
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    stops = np.cumsum(lengths + 1)
    codes = np.frombuffer(data, np.uint8)
    # Comparisons, which run many bytes at a time; a table takes three times as long.
    spaced = (codes - ord("a") < 26) | (codes - ord("0") < 10) | (codes == ord("_"))
    classes = spaced.view(np.uint8)
    if not all(part.isascii() for part in parts):
        leads = np.flatnonzero(codes - 0xC0 < 0x38)  # of characters beyond ASCII
        points, sizes = _decode(codes, leads)
        table = _table()
        kinds = table[np.minimum(points, len(table) - 1)]
        if (kinds & _CAPITAL).any():
            return None
        for offset in range(4):
            kind = kinds[sizes > offset]
            classes[leads[sizes > offset] + offset] = kind if not offset else kind & SPACED_CLASS
    begins = _word_begins(codes, classes)
    counted = np.cumsum(np.bitwise_count(begins), dtype=np.int64)
    counted = np.concatenate([[0], counted[:-1]])
    return Buffer(data, stops - lengths, stops, classes, begins, counted)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _word_begins(codes: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    word, spaced = _bits(classes > 0), _bits(classes == SPACED_CLASS)
    before = _moved_on(spaced)
    after = spaced >> np.uint64(1)
    after[:-1] |= spaced[1:] << np.uint64(63)
    inside = _bits(codes == ord("'")) & before & after  # apostrophes
    return word & ~(spaced & before) & ~_moved_on(inside)


def _bits(flags: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """[bytes // 64 + 1] of uint64, a bit for each flag."""
    bits = np.zeros((flags.size // 64 + 1) * 8, np.uint8)
    bits[: -(-flags.size // 8)] = np.packbits(flags, bitorder="little")
    return bits.view("<u8")


def _moved_on(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each bit one place later."""
    moved = bits << np.uint64(1)
    moved[1:] |= bits[:-1] >> np.uint64(63)
    return moved


def _decode(codes: NDArray[np.uint8], leads: Ints) -> tuple[Ints, Ints]:
    """Code points and sizes in bytes (2 to 4) of the characters that begin at `leads`."""
    first = codes[leads].astype(np.int64)
    sizes = 2 + (first >= 0xE0) + (first >= 0xF0)
    points = first & (0xFF >> (sizes + 1))
    for offset in range(1, 4):
        longer = sizes > offset
        points[longer] = points[longer] << 6 | codes[leads[longer] + offset] & 0x3F
    return points, sizes


@cache
def _table() -> NDArray[np.uint8]:
    """Class of every code point up to the last Han block; the last entry is for all beyond."""
    points = np.arange(_CJK_RANGES[-1][1] + 2, dtype="<u4")
    characters = points.tobytes().decode("utf-32-le", "surrogatepass")
    characters = characters.replace("İ", "i")  # `fold` leaves it, slowly: its lower case is two
    table = np.fromiter(map(str.isalnum, characters), np.uint8) * np.uint8(SPACED_CLASS)
    for low, high in _CJK_RANGES:
        table[low : high + 1] = _CJK_FIRST
    table[_points(fold(characters)) != _points(characters)] |= _CAPITAL
    return table


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
