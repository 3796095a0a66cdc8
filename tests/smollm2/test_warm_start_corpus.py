from __future__ import annotations

from epistill.json_files import write_jsonl
from epistill.smollm2.warm_start_corpus import OTHER, warm_start_records
from epistill.tasks.files import load_problems


def test_a_context_is_only_ever_that_of_another_task(tmp_path):
    records = warm_start_records(0, 600)
    pairs = [r for r in records if "Which two" in r["question"]]
    others = [r for r in records if "Which two" not in r["question"]]
    assert abs(len(others) / 600 - OTHER) < 0.06
    assert not any("Solution:" in r["question"] for r in pairs)
    assert all(r["solution"] in r["question"] for r in others)
    assert not any("maybe" in r["solution"].lower() for r in others)
    assert warm_start_records(0, 5) == records[:5]
    assert warm_start_records(1, 5) != records[:5]
    write_jsonl(tmp_path / "corpus.jsonl", records)
    read = load_problems(str(tmp_path / "corpus.jsonl"))
    assert all(problem.solution for problem in read.problems)
    assert len(read.problems) > 590
