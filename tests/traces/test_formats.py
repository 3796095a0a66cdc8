"""Files as public tools write them are read without flags: the same responses from every one."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epistill.errors import EpistillError
from epistill.traces.grade import grade_files
from epistill.traces.measure import Options, measure_files
from epistill.traces.measure_summary import summarise_measured
from epistill.traces.references import GradeOptions

PROBLEMS = [(i, f"What is {i} + 7?", str(i + 7)) for i in range(6)]
SAMPLES = range(4)


def thinking(i):
    return f"{i} plus 7. Wait, let me add."


def said(i, s):
    return f"The answer is \\boxed{{{i + 7 if s < 2 else i + 8}}}."


def whole(i, s):
    return f"<think>\n{thinking(i)}\n</think>\n\n{said(i, s)}"


def each(make):
    return [make(i, q, a, s) for i, q, a in PROBLEMS for s in SAMPLES]


def per_problem(make):
    return [make(i, q, a, [whole(i, s) for s in SAMPLES]) for i, q, a in PROBLEMS]


def parts(i, s):
    return [
        {"type": "reasoning", "reasoning": thinking(i)},
        {"type": "text", "text": said(i, s)},
    ]


def inspect_sample(i, q, a, s):
    reply = {"role": "assistant", "content": parts(i, s)}
    return {
        "id": i, "epoch": s + 1, "input": q, "target": a, "messages": [],
        "output": {"choices": [{"message": reply, "stop_reason": "stop"}],
                   "usage": {"output_tokens": 40}},
        "scores": {"match": {"value": "CI"[s >= 2], "answer": "x"}},
    }  # fmt: skip


def answered(i, s, **more):
    reply = {"role": "assistant", "content": said(i, s), "reasoning_content": thinking(i)}
    return {"message": reply, "finish_reason": "stop", **more}


LINES = {
    "lm-evaluation-harness": [
        {"doc_id": i, "doc": {"question": q, "answer": f"x #### {a}"}, "target": f"x #### {a}",
         "arguments": [[q, {"until": []}]], "resps": [texts], "filtered_resps": [a],
         "filter": name, "metrics": ["exact_match"], "exact_match": 1.0}
        for name in ("strict-match", "flexible-extract")
        for i, q, a, texts in per_problem(lambda *row: row)
    ],
    "lighteval before 0.11": per_problem(lambda i, q, a, texts: {
        "example": q, "instruction": "", "full_prompt": q, "predictions": texts, "gold": [a],
        "cont_tokens": [[[1] * (40 + i)] * 4], "truncated": [0], "padded": [0], "metrics": {"m": 0.5},
    }),
    "lighteval": per_problem(lambda i, q, a, texts: {
        "doc": {"query": q, "choices": [a], "gold_index": [0], "id": str(i)},
        "model_response": {"input": q, "text": texts, "output_tokens": [[1] * (40 + i)] * 4},
        "metric": {"pass@k": 0.5},
    }),
    "Qwen2.5-Math": per_problem(lambda i, q, a, texts: {
        "idx": i, "question": q, "gt": a, "answer": float(a), "code": texts, "pred": ["x"] * 4,
        "score": [True, True, False, False],
    }),
    "nested generations": per_problem(lambda i, q, a, texts: {
        "question": q, "answer": a, "generations": [[{"text": text} for text in texts]],
    }),
    "OpenAI batch": each(lambda i, q, a, s: {
        "custom_id": f"p{i}-{s}",
        "response": {"status_code": 200, "body": {"choices": [answered(i, s, index=0)],
                                                  "usage": {"completion_tokens": 40}}},
        "reference": a,
    }),
    "OpenAI batch, n = 4": per_problem(lambda i, q, a, texts: {
        "custom_id": f"p{i}", "reference": a,
        "response": {"body": {"choices": [answered(i, s, index=s) for s in SAMPLES]}},
    }),
    "OpenAI Responses batch": each(lambda i, q, a, s: {
        "custom_id": f"p{i}-{s}", "reference": a,
        "response": {"body": {
            "object": "response", "status": "completed", "incomplete_details": None,
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": thinking(i)}]},
                {"type": "message", "role": "assistant",
                 "content": [{"type": "output_text", "text": said(i, s)}]},
            ],
            "reasoning": {"effort": "high", "summary": None}, "usage": {"output_tokens": 40},
        }},
    }),
    "Anthropic batch": each(lambda i, q, a, s: {
        "custom_id": f"p{i}_{s}", "reference": a,
        "result": {"type": "succeeded", "message": {
            "role": "assistant", "stop_reason": "end_turn", "usage": {"output_tokens": 40},
            "content": [{"type": "thinking", "thinking": thinking(i)},
                        {"type": "text", "text": said(i, s)}],
        }},
    }),
    "verl": each(lambda i, q, a, s: {
        "input": f"user\n{q}\nassistant\n<think>\n", "output": f"{thinking(i)}\n</think>{said(i, s)}",
        "gts": a, "score": float(s < 2), "step": 100,
    }),
    "NeMo-Skills": each(lambda i, q, a, s: {
        "problem": q, "expected_answer": a, "generation": said(i, s), "finish_reason": "stop",
        "reasoning_content": thinking(i), "num_generated_tokens": 40, "symbolic_correct": s < 2,
    }),
    "open-r1": per_problem(lambda i, q, a, texts: {
        "problem": q, "solution": "worked", "answer": a, "uuid": str(i), "generations": texts,
        "finish_reasons": ["stop"] * 4, "correctness_math_verify": [True, True, False, False],
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": texts[0]}],
    }),
    "s1": each(lambda i, q, a, s: {
        "question": q, "solution": a, "cot": None, "thinking_trajectories": [thinking(i)],
        "attempt": said(i, s),
    }),
    "OpenThoughts": each(lambda i, q, a, s: {
        "problem": q, "ground_truth_solution": a, "deepseek_reasoning": thinking(i),
        "deepseek_solution": said(i, s),
    }),
    "LiveCodeBench": per_problem(lambda i, q, a, texts: {
        "question_id": i, "question_content": q, "output_list": texts, "answer": a,
        "graded_list": [True, True, False, False],
    }),
    "OpenRLHF, slime": each(lambda i, q, a, s: {
        "prompt": q, "response": whole(i, s), "label": a, "reward": s < 2, "status": "completed",
    }),
    "a reference beside what a model answered": each(lambda i, q, a, s: {
        "Question": q, "Ground Truth": a, "Model Answer": whole(i, s), "label": "correct",
    }),
    "a Responses object": each(lambda i, q, a, s: {
        "question": q, "answer": a, "response": {
            "status": "completed", "reasoning": {"effort": "high", "summary": "detailed"},
            "output": [{"type": "reasoning", "content": [
                           {"type": "reasoning_text", "text": thinking(i)}]},
                       {"type": "message", "content": [
                           {"type": "output_text", "text": said(i, s)}]}]},
    }),
    "harmony messages": each(lambda i, q, a, s: {
        "gold": a, "messages": [
            {"role": "user", "content": q},
            {"role": "assistant", "channel": "analysis", "content": thinking(i)},
            {"role": "assistant", "channel": "final", "content": said(i, s)}],
    }),
    "swift infer": each(lambda i, q, a, s: {
        "response": whole(i, s), "labels": a, "logprobs": None,
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": whole(i, s)}],
    }),
    "swift completions": [{
        "gen_step": [1] * 24, "prompt": each(lambda i, q, a, s: q),
        "completion": each(lambda i, q, a, s: whole(i, s)),
        "MathAccuracy": each(lambda i, q, a, s: float(s < 2)),
        "solution": each(lambda i, q, a, s: a),
    }],
    "vLLM": per_problem(lambda i, q, a, texts: {
        "prompt": q, "gold": a,
        "outputs": [{"index": s, "text": text, "token_ids": [1] * 40, "finish_reason": "stop"}
                    for s, text in enumerate(texts)],
    }),
    "SGLang": each(lambda i, q, a, s: {
        "prompt": q, "text": whole(i, s), "gold": a,
        "meta_info": {"finish_reason": {"type": "stop", "matched": 1}, "completion_tokens": 40},
    }),
    "Gemini": each(lambda i, q, a, s: {
        "key": f"p{i}-{s}", "gold": a,
        "response": {"candidates": [{
            "content": {"parts": [{"text": thinking(i), "thought": True}, {"text": said(i, s)}]},
            "finishReason": "STOP",
        }]},
    }),
    "Bedrock": each(lambda i, q, a, s: {
        "recordId": f"p{i}-{s}", "gold": a, "modelOutput": {
            "content": [{"type": "text", "text": whole(i, s)}], "stop_reason": "end_turn"},
    }),
    "Ollama": each(lambda i, q, a, s: {
        "question": q, "gold": a, "done_reason": "stop", "eval_count": 40,
        "message": {"role": "assistant", "content": said(i, s), "thinking": thinking(i)},
    }),
    "simple-evals": each(lambda i, q, a, s: {
        "score": float(s < 2), "html": "", "reference": a,
        "convo": [{"role": "user", "content": q}, {"role": "assistant", "content": whole(i, s)}],
    }),
    "evalscope": each(lambda i, q, a, s: {
        "index": 4 * i + s, "messages": [{"role": "user", "content": q}], "target": a,
        "model_output": {"choices": [{"message": {"role": "assistant", "content": parts(i, s)},
                                      "stop_reason": "stop"}]},
    }),
}  # fmt: skip
OBJECTS = {
    "results": {"model": "m", "results": each(lambda i, q, a, s: {
        "question": q, "answer": a, "response": whole(i, s)})},
    "results by task": {"results": {"sums": each(lambda i, q, a, s: {
        "question": q, "answer": a, "response": whole(i, s)})}},
    "OpenCompass": {str(n): {"origin_prompt": [{"role": "HUMAN", "prompt": q}],
                             "prediction": whole(i, s), "gold": a}
                    for n, (i, q, a, s) in enumerate(each(lambda *row: row))},
    "Inspect": {"version": 2, "status": "success", "eval": {"task": "t"},
                "samples": each(inspect_sample)},
    "HELM": {"request_states": each(lambda i, q, a, s: {
        "instance": {"input": {"text": q}, "id": f"id{i}", "references": [
            {"output": {"text": a}, "tags": ["correct"]}, {"output": {"text": "0"}, "tags": []}]},
        "result": {"completions": [{"text": whole(i, s), "finish_reason": {"reason": "stop"}}]}})},
    "OpenCompass results": {"accuracy": 50.0, "details": {str(n): {
        "prompt": [{"role": "HUMAN", "prompt": q}], "origin_prediction": whole(i, s),
        "predictions": "x", "references": a, "correct": s < 2}
        for n, (i, q, a, s) in enumerate(each(lambda *row: row))}},
    "an object by problem": {f"sums/{i}": {"question": q, "answer": a, "responses": texts}
                             for i, q, a, texts in per_problem(lambda *row: row)},
    "a data frame, split": {"columns": ["question", "answer", "response"], "index": [*range(24)],
                            "data": each(lambda i, q, a, s: [q, a, whole(i, s)])},
    "an array": each(lambda i, q, a, s: {"question": q, "answer": a, "response": whole(i, s)}),
    "a data frame": {name: {str(n): row[place] for n, row in enumerate(each(
        lambda i, q, a, s: (q, a, whole(i, s))))}
        for place, name in enumerate(("question", "answer", "response"))},
}  # fmt: skip


def check(path, tmp_path):
    options = Options()
    found = summarise_measured(measure_files([path], options), options)["files"][0]
    group = found["groups"]["(all)"]
    assert (found["reading"]["responses_used"], group["problems"]) == (24, 6)
    assert group["markers"]["paper-en"]["words"]["wait"]["count"] == 24
    assert group["markers"]["paper-en"]["thinking"]["count"] == 24
    assert (group["thinking"]["share"]["value"], group["truncated"]["share"]["value"]) == (1, 0)
    assert not any("stop reason" in note for note in found["reading"]["notes"])
    (graded,) = grade_files([path], tmp_path / "graded.jsonl", GradeOptions(workers=1))
    assert graded["score"]["value"] == 0.5
    if graded["agreement"] is not None:
        assert graded["agreement"]["agree"] == graded["agreement"]["labelled"] == 24


@pytest.mark.parametrize("name", LINES)
def test_lines(name, write, tmp_path):
    check(write("a.jsonl", LINES[name]), tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", OBJECTS)
def test_one_object(name, indent, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(OBJECTS[name], indent=indent))
    check(path, tmp_path)


def test_lists_of_texts_alone(tmp_path):
    path = tmp_path / "generations.json"
    path.write_text(json.dumps(per_problem(lambda i, q, a, texts: texts)))
    (found,) = measure_files([path], Options())
    assert (found.reading.used, len(found.groups["(all)"].sums)) == (24, 6)


@pytest.mark.parametrize("name", ["lighteval", "lighteval before 0.11", "open-r1"])
def test_parquet(name, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(LINES[name]), path)
    check(path, tmp_path)


def test_trl_completions(tmp_path):
    rows = each(lambda i, q, a, s: {
        "step": 5, "prompt": [{"role": "user", "content": q}], "solution": a, "advantage": 0.5,
        "completion": [{"role": "assistant", "content": whole(i, s)}],
        "accuracy_reward": float(s < 2),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "completions_00005.parquet")
    check(tmp_path / "completions_00005.parquet", tmp_path)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv(delimiter, tmp_path):
    out = io.StringIO()
    table = csv.writer(out, delimiter=delimiter)
    table.writerow(["", "Question", "gold", "response", "is_correct"])
    for n, row in enumerate(each(lambda i, q, a, s: (q, a, chat_as_written(i, s), s < 2))):
        table.writerow([n, *row])
    (tmp_path / "a.csv").write_text(out.getvalue())
    check(tmp_path / "a.csv", tmp_path)


def chat_as_written(i, s):
    """As tables write a chat: now as JSON, now as Python prints it, now its text alone."""
    chat = [{"role": "assistant", "content": whole(i, s)}]
    return (json.dumps(chat), str(chat), whole(i, s))[i % 3]


def test_an_array_of_arrays(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(per_problem(lambda i, q, a, texts: [
        {"question": q, "answer": a, "response": text} for text in texts
    ])))  # fmt: skip
    check(path, tmp_path)


@pytest.mark.parametrize("label", ["correct", "1", True, 0])
def test_a_label_that_is_a_verdict_is_no_reference(write, tmp_path, label):
    path = write("a.jsonl", [{"response": "\\boxed{1}", "label": label}])
    with pytest.raises(EpistillError, match="no reference answer"):
        grade_files([path], tmp_path / "graded.jsonl", GradeOptions(workers=1))


@pytest.mark.parametrize("zstd", [False, True])
def test_an_inspect_log(zstd, tmp_path):
    """Inspect compresses with zstd, number 93 among a zip's methods, which Python learns in 3.14."""
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if zstd else zipfile.ZIP_DEFLATED) as log:
        log.writestr("header.json", '{"version": 2}')
        for sample in each(inspect_sample):
            data = json.dumps(sample).encode()
            packed = pa.compress(data, "zstd", asbytes=True) if zstd else data
            log.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", packed)
            if zstd:
                log.infolist()[-1].compress_type = 93
    check(path, tmp_path)


def test_the_given_files(shared_cases):
    options = Options()
    for path in sorted((shared_cases / "formats").iterdir()):
        found = summarise_measured(measure_files([path], options), options)["files"][0]
        group = found["groups"]["(all)"]
        assert (found["reading"]["responses_used"], group["problems"]) == (300, 75), path
        assert group["markers"]["paper-en"]["words"]["wait"]["count"] == 300, path
