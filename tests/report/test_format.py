"""What pages and terminals say in a sentence."""

from __future__ import annotations

import json

import epistill
from epistill.metrics.lexicon import load_lexicon
from epistill.report.format import measured_answer, measured_groups


def test_markers_and_the_words_beside_them_are_called_what_they_are(tmp_path):
    ordinary = load_lexicon("control-en").words[0]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"response": f"wait maybe {ordinary} it is 3"}) + "\n")
    groups = measured_groups(epistill.measure(path).summary)
    (answer,) = (measured_answer(*one) for one in groups.items())
    assert " markers (paper-en)" in answer
    assert " control words (control-en)" in answer
