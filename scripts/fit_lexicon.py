"""How well lexicons mark uncertainty in labelled sentences; a better one fitted on half of them.

Enters: JSON lines with `file` (the response), `sentence` and `tags`. Responses, not sentences, are
split in two halves by a named seed. On the first half phrases of CANDIDATES (hedges, contrast,
checks and retractions) are added one at a time, each the one that raises F1 most, until the next
gains less than LEAST_GAIN. The three limits were chosen by ten-fold
cross-validation over the responses of that half. Both lists are judged on the other half (which an
earlier, overfitted list had been judged on before).
Usage: python scripts/fit_lexicon.py LABELLED.jsonl (docs/metrics.md, "How good are the lexicons?").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from epistill.metrics import Lexicon, count_markers, load_lexicon, total_markers
from epistill.seeds import named_random

LABEL = "uncertainty_management"
LEAST_SENTENCES, LEAST_PRECISION, LEAST_GAIN = 6, 0.4, 0.005
CANDIDATES = (
    "wait", "hmm", "perhaps", "maybe", "actually", "seems", "might", "likely", "possibly",
    "probably", "could be", "may be", "unless", "but", "but wait", "however", "though",
    "although", "not sure", "i'm not sure", "unsure", "uncertain", "confused", "confusing",
    "wrong", "mistake", "error", "missed", "missing something", "misunderstood", "doubt",
    "i think", "i believe", "i guess", "i wonder", "i suppose", "suppose", "let me think",
    "let me check", "let me see", "make sure", "double-check", "double check", "verify",
    "confirm", "reconsider", "recheck", "rethink", "is that right", "is that correct", "is it",
    "does that", "does it", "am i", "should i", "or is", "or maybe", "doesn't", "isn't",
    "can't be", "that can't", "not right", "not correct", "that doesn't", "doesn't make sense",
    "doesn't seem", "that seems", "seem", "appears", "strange", "odd", "weird", "hold on", "oh",
    "oops", "no", "not", "again", "sure", "right", "why", "how", "what if", "whether", "if i",
    "instead", "another way", "alternatively", "different", "conflict", "contradiction",
    "contradicts", "problem is", "unclear", "ambiguous", "tricky", "complicated", "messy",
    "stuck", "hard",
)  # fmt: skip

Row = dict[str, Any]


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Sentences of half of the responses, and of the others."""
    responses = sorted({row["file"] for row in rows})
    named_random("fit_lexicon", 0).shuffle(responses)
    first = set(responses[: len(responses) // 2])
    return [r for r in rows if r["file"] in first], [r for r in rows if r["file"] not in first]


def rates(hits: int, marked: int, labelled: int) -> tuple[float, float, float]:
    """Precision, recall and F1."""
    precision, recall = hits / marked if marked else 0.0, hits / labelled
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def fit(rows: list[Row]) -> list[str]:
    """The phrases, in the order in which they were added."""
    positive = {i for i, row in enumerate(rows) if LABEL in row["tags"]}
    found = {c: Lexicon(c, 1, "", "en", words=(c,)) for c in CANDIDATES}
    where = {
        phrase: {i for i, row in enumerate(rows) if total_markers(row["sentence"], alone)}
        for phrase, alone in found.items()
    }
    able = {
        phrase: places
        for phrase, places in where.items()
        if len(places & positive) >= max(LEAST_SENTENCES, LEAST_PRECISION * len(places))
    }
    chosen: list[str] = []
    marked: set[int] = set()
    best = 0.0
    while able:
        score, phrase = max(
            (rates(len((new := marked | places) & positive), len(new), len(positive))[2], phrase)
            for phrase, places in able.items()
        )
        if score < best + LEAST_GAIN:
            break
        best = score
        marked |= able.pop(phrase)
        chosen.append(phrase)
    return chosen


def judge(rows: list[Row], label: str, found: list[bool]) -> str:
    """Precision, recall and F1 against one label, as a table's cells."""
    tagged = [label in row["tags"] for row in rows]
    hits = sum(a and b for a, b in zip(found, tagged, strict=True))
    return " | ".join(f"{value:.3f}" for value in rates(hits, sum(found), sum(tagged)))


def main(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fitted, other = halves(rows)
    print(f"{len(rows)} sentences; fitted on {len(fitted)}, judged on {len(other)}")
    print("fitted:", json.dumps(fit(fitted)))
    labels = sorted({tag for row in rows for tag in row["tags"]})
    for name in ("paper-en", "uncertainty-en"):
        lexicon = load_lexicon(name)
        for half, which in ((rows, "all"), (fitted, "fitted half"), (other, "other half")):
            counts = [count_markers(row["sentence"], lexicon) for row in half]
            any_word = [any(count.values()) for count in counts]
            for label in labels if half is rows else (LABEL,):
                print(f"| {name}, {which} | {label} | {judge(half, label, any_word)} |")
            for word in lexicon.words if half is not fitted else ():
                own = [count[word] > 0 for count in counts]
                print(f"| {word}, {which} | {sum(own)} | {judge(half, LABEL, own)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
