"""Draws under rules that force words into a response or keep words out of it (`word_rules`).

Enters: what was drawn for each row, and a way to draw again without some tokens: in process the
keys whose largest the draw was, on servers another request (`server_responses`). Leaves: the tokens
that are written, and which of them a rule decided: nobody sampled those. Rules speak of text, so
text decides: a word is blocked in whatever tokens it would be spelled. A blocked draw is drawn
again without that token, which is exact: the largest key among the allowed tokens is a draw from
the distribution without the others. Forcing ends where thinking has been closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.metrics.lexicon import words_named
from epistill.metrics.words import fold, on_word_boundaries
from epistill.thinking import CLOSES
from epistill.word_rules import END, WordRule, word_rule

REACH = 400  # characters before a place that `after` looks at


@dataclass(slots=True)
class RuledRow:
    """What one response has so far.

    Attributes:
        ids, text: Written; the text lags behind while a character is incomplete.
        settled, read: Tokens whose text can no longer change, and whose text was read.
        queue: Tokens that a rule still has to write.
        used: Times that each force rule was applied.
        decided: Of each token, whether a rule decided it.
        closed: Thinking has been closed.
    """

    used: list[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    settled: int = 0
    read: int = 0
    queue: list[int] = field(default_factory=list)
    decided: list[bool] = field(default_factory=list)
    closed: bool = False


class RuledDraws:
    """The rules of one batch of responses.

    Args:
        tokenizer: Of the model.
        ends: Its end tokens.
        sampling: Whose `force` and `block` are applied.
        rows: Responses.

    Attributes:
        rows: Their states.

    Raises:
        EpistillError: A rule names what this model has no token for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        sampling: SamplingConfig,
        rows: int,
    ) -> None:
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._spelled: dict[str, list[int]] = {}
        force = [word_rule("force", text) for text in sampling.force]
        self._forced = [(rule, _place(rule)) for rule in force]
        self._instead = {
            i: self._token(rule) for i, rule in enumerate(force) if rule.place == "before"
        }
        self._blocked = [
            (one, re.compile(on_word_boundaries(fold(one.words))), _place(one))
            for rule in (word_rule("block", text) for text in sampling.block)
            for word in words_named(rule.words)
            for one in (WordRule(word, rule.place, rule.argument),)
        ]
        self._longest = max((len(one.words) for one, _, _ in self._blocked), default=0) + 1
        self.rows = [RuledRow([0] * len(force)) for _ in range(rows)]

    def settle(self, here: Tensor, drawn: Tensor, keys: Tensor, log_probs: Tensor) -> Tensor:
        """What is written instead of what was drawn, [n].

        Args:
            here: [n] which rows these are.
            drawn: [n] tokens, the largest of their keys.
            keys: [n, V], -inf outside top-k and top-p; where rules leave nothing of those, the most
                likely allowed token is written.
            log_probs: [n, V].
        """
        tokens = drawn.tolist()
        for i, row in enumerate(here.tolist()):
            written = self.write(self.rows[row])
            try:
                refused = next(written)
                while True:
                    again = _without(refused, keys[i], log_probs[i]) if refused else tokens[i]
                    refused = written.send(again)
            except StopIteration as end:
                tokens[i] = end.value
        return torch.tensor(tokens, device=drawn.device)

    def write(self, row: RuledRow) -> Generator[Sequence[int], int, int]:
        """Write the next token of a response and return it.

        Yields the tokens that were refused here so far, and is sent a draw without them; where the
        rules leave no choice, it asks for none.
        """
        token, ruled = -1, True
        row.queue = row.queue or self._at_place(row)
        if not row.queue:
            refused: list[int] = []
            while self._breaks(row, token := (yield refused)):
                refused.append(token)
            ruled = bool(refused)
            for i, instead in self._instead.items():
                if token in instead and self._may(i, row):
                    row.queue = self._start(i, row)
                    break
        if row.queue:
            token, ruled = row.queue.pop(0), True
        row.decided.append(ruled)
        self._append(row, token)
        return token

    def _may(self, rule: int, row: RuledRow) -> bool:
        most = self._forced[rule][0].most
        return not row.closed and (most is None or row.used[rule] < most)

    def _at_place(self, row: RuledRow) -> list[int]:
        if row.read < len(row.ids):  # inside a character
            return []
        for i, (rule, place) in enumerate(self._forced):
            if rule.place != "before" and self._may(i, row) and place(row.text):
                return self._start(i, row)
        return []

    def _start(self, rule: int, row: RuledRow) -> list[int]:
        """The tokens of a rule's words here: with a space where a word would run into another."""
        row.used[rule] += 1
        words = self._forced[rule][0].words
        touching = row.text and not row.text[-1].isspace() and words[0].isalnum()
        return list(self._ids(f" {words}" if touching else words))

    def _ids(self, words: str) -> list[int]:
        if words not in self._spelled:
            ids = self._tokenizer.encode(words, add_special_tokens=False)
            if not ids or self._tokenizer.unk_token_id in ids:
                raise EpistillError(
                    f"this model's tokenizer cannot write {words.strip()!r}; force or block other "
                    "words"
                )
            self._spelled[words] = ids
        return self._spelled[words]

    def _token(self, rule: WordRule) -> frozenset[int]:
        """What `before` waits for."""
        if rule.argument == END:
            return self._ends
        ids = self._ids(rule.argument)
        if len(ids) != 1:
            raise EpistillError(
                f"force before:{rule.argument}: this model writes that in {len(ids)} tokens; "
                "expected one token, such as </think>, or <end>"
            )
        return frozenset(ids)

    def _breaks(self, row: RuledRow, token: int) -> bool:
        """Whether a blocked text would be complete with this token."""
        if not self._blocked:
            return False
        if token in self._ends:
            return any(one.words == END and place(row.text) for one, _, place in self._blocked)
        piece = self._piece(row, token)
        old = len(row.text)
        start = max(0, old - self._longest)
        folded = fold(row.text[start:] + piece)
        for one, occurrence, place in self._blocked:
            for found in occurrence.finditer(folded) if one.words != END else ():
                before = (row.text + piece)[: start + found.start()]
                if found.end() + start > old and place(before):
                    return True
        return False

    def _piece(self, row: RuledRow, token: int) -> str:
        """The text that a token adds; "" while a character is incomplete."""
        before = self._decode(row.ids[row.settled : row.read])
        after = self._decode([*row.ids[row.settled :], token])
        return "" if after.endswith("\ufffd") else after[len(before) :]

    def _append(self, row: RuledRow, token: int) -> None:
        piece = self._piece(row, token)
        row.ids.append(token)
        if piece:
            row.text += piece
            row.settled, row.read = row.read, len(row.ids)
            row.closed = row.closed or any(tag in row.text[-len(piece) - 24 :] for tag in CLOSES)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _without(refused: Sequence[int], keys: Tensor, log_probs: Tensor) -> int:
    """The draw without these tokens: the largest key, or likeliest where filters left no other."""
    for left in (keys.clone(), log_probs.clone()):
        left[refused] = -torch.inf
        token = int(left.argmax())
        if left[token] > -torch.inf:
            return token
    raise EpistillError("the blocked words leave no token; block fewer")


def _place(rule: WordRule) -> Callable[[str], bool]:
    """Whether a rule holds after a text; spaces may stand in between."""
    if rule.place in ("", "before"):
        return lambda text: True
    if rule.place == "until":
        until = re.compile(rule.argument)
        return lambda text: until.search(text) is None
    ends = {"start": r"\A\s*", "line": r"(?:\A|\n)[ \t]*", "after": f"(?:{rule.argument})"}
    pattern = re.compile(rf"{ends[rule.place]}\Z")

    def holds(text: str) -> bool:
        tail = text[-REACH:]
        cut = rule.place == "start" and len(text) > REACH
        found = pattern.search(tail) or (rule.place == "after" and pattern.search(tail.rstrip()))
        return bool(found) and not cut

    return holds
