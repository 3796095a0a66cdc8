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
from epistill.traces.measure import measure_files
from epistill.traces.measure_summary import summarise_measured
from epistill.traces.options import Options
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


def asked_and_said(i, q, s, coded=False):
    reasoning = {"type": "reasoning", "reasoning": thinking(i), "redacted": coded}
    if coded:
        reasoning |= {"reasoning": "gAAAAABo", "summary": thinking(i)}
    content = [reasoning, {"type": "text", "text": said(i, s)}]
    return [{"role": "user", "content": q}, {"role": "assistant", "content": content}]


def inspect_sample(i, q, a, s):
    reply = asked_and_said(i, q, s, coded=i % 2 == 0)[1]
    return {
        "id": f"sums/{i}", "epoch": s + 1, "input": q, "target": a, "messages": [],
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
         "arguments": {"gen_args_0": {"arg_0": f"Q: {q}", "arg_1": {"until": ["Q:"]}}},
         "resps": [texts], "filtered_resps": [a], "filter": name, "metrics": ["exact_match"],
         "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "exact_match": 1.0}
        for name in ("strict-match", "flexible-extract")
        for i, q, a, texts in per_problem(lambda *row: row)
    ],
    "lighteval before 0.11": per_problem(lambda i, q, a, texts: {
        "example": q, "instruction": "", "full_prompt": q, "predictions": texts, "gold": [a],
        "cont_tokens": [[[1] * (40 + i)] * 4], "truncated": [0], "padded": [0], "metrics": {"m": 0.5},
    }),
    "lighteval": per_problem(lambda i, q, a, texts: {
        "doc": {"query": q, "choices": [f"ANSWER: so $\\boxed{{{a}}}$"], "gold_index": 0,
                "id": str(i), "specific": None, "num_samples": 4, "fewshot_samples": []},
        "model_response": {"input": f"user\n{q}\n", "text": texts, "input_tokens": [1] * 20,
                           "output_tokens": [[1] * (40 + i)] * 4, "reasonings": [],
                           "text_post_processed": [text[-30:] for text in texts], "logprobs": []},
        "metric": {"pass@k:k=1&n=4": 0.5},
    }),
    "lighteval, one sample": each(lambda i, q, a, s: {
        "doc": {"query": q, "choices": [f" 7 more\n#### {a}"], "gold_index": 0},
        "model_response": {"text": [said(i, s)], "reasonings": [thinking(i)]},
        "metric": {"extractive_match": float(s < 2)},
    }),
    "Qwen2.5-Math": per_problem(lambda i, q, a, texts: {
        "idx": i, "question": q, "gt_cot": "7 more", "gt": a, "solution": "7 more",
        "answer": f"7 more #### {a}", "code": texts, "pred": ["x"] * 4, "report": [None] * 4,
        "score": [True, True, False, False],
    }),
    "nested generations": per_problem(lambda i, q, a, texts: {
        "question": q, "answer": a, "generations": [[{"text": text} for text in texts]],
    }),
    "OpenAI batch": each(lambda i, q, a, s: {
        "id": f"batch_req_{i}{s}", "custom_id": f"p{i}-{s}", "error": None,
        "response": {"status_code": 200, "body": {"choices": [answered(i, s, index=0)],
                                                  "usage": {"completion_tokens": 40}}},
    }),
    "OpenAI batch, n = 4": per_problem(lambda i, q, a, texts: {
        "custom_id": f"p{i}",
        "response": {"body": {"choices": [answered(i, s, index=s) for s in SAMPLES]}},
    }),
    "OpenAI Responses batch": each(lambda i, q, a, s: {
        "custom_id": f"p{i}-{s}",
        "response": {"body": {
            "object": "response", "status": "completed", "incomplete_details": None,
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": thinking(i)}],
                 "encrypted_content": "gAAAAABo"},
                {"type": "message", "role": "assistant", "status": "completed",
                 "content": [{"type": "output_text", "text": said(i, s)}]},
            ],
            "reasoning": {"effort": "high", "summary": None}, "usage": {"output_tokens": 40},
        }},
    }),
    "Anthropic batch": each(lambda i, q, a, s: {
        "custom_id": f"p{i}_{s}",
        "result": {"type": "succeeded", "message": {
            "role": "assistant", "stop_reason": "end_turn", "usage": {"output_tokens": 40},
            "content": [{"type": "redacted_thinking", "data": "EqQB"},
                        {"type": "thinking", "thinking": thinking(i), "signature": "Eq"},
                        {"type": "text", "text": said(i, s)}],
        }},
    }),
    "verl": each(lambda i, q, a, s: {
        "input": f"user\n{q}\nassistant\n<think>\n", "output": f"{thinking(i)}\n</think>{said(i, s)}",
        "gts": a, "score": float(s < 2) or -1.0, "step": 100, "uid": f"u{i}_{s}_0", "acc": s < 2,
    }),
    "NeMo-Skills": each(lambda i, q, a, s: {
        "problem": q, "expected_answer": a, "generation": said(i, s), "finish_reason": "stop",
        "reasoning_content": thinking(i), "num_generated_tokens": 40, "symbolic_correct": s < 2,
    }),
    "NeMo-Skills, reasoning parsed": each(lambda i, q, a, s: {
        "problem": q, "expected_answer": a, "generation": said(i, s), "finish_reason": "stop",
        "_full_generation": whole(i, s), "_generation_finished_thinking": True,
        "num_generated_tokens": -1, "judgement": "Judgement: Yes", "symbolic_correct": s < 2,
    }),
    "open-r1": per_problem(lambda i, q, a, texts: {
        "problem": q, "solution": "worked", "answer": a, "uuid": str(i), "generations": texts,
        "finish_reasons": ["stop"] * 4, "correctness_math_verify": [True, True, False, False],
        "api_metadata": [{"prompt_tokens": 20, "completion_tokens": 40}] * 4,
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
        "question_id": i, "question_content": q, "output_list": texts, "code_list": ["x"] * 4,
        "graded_list": [True, True, False, False],
    }),
    "OpenRLHF": each(lambda i, q, a, s: {
        "input": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "output": whole(i, s),
        "reward": float(s < 2),
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
    "verifiers": each(lambda i, q, a, s: {
        "example_id": i, "prompt": [{"role": "user", "content": q}], "answer": a,
        "completion": [{"role": "assistant", "content": said(i, s),
                        "reasoning_content": thinking(i)}],
        "reward": float(s < 2), "is_truncated": False, "stop_condition": "max_turns_reached",
        "metrics": {"correct_answer": float(s < 2)}, "correct_answer": float(s < 2),
        "token_usage": {"input_tokens": 20.0, "output_tokens": 40.0},
    }),
    "prime-rl": each(lambda i, q, a, s: {
        "id": f"e{i}{s}", "task": {"type": "T", "data": {"idx": i, "prompt": q, "answer": a}},
        "group": {"id": f"g{i}", "index": s}, "ok": True, "traces": [{
            "id": f"t{i}{s}", "nodes": [
                {"message": {"role": "user", "content": q}, "sampled": False},
                {"parent": 0, "sampled": True, "message": {
                    "role": "assistant", "content": said(i, s), "reasoning_content": thinking(i)}}],
            "calls": [{"node": 1, "finish_reason": "stop"}],
            "rewards": {"correct": {"score": float(s < 2), "weight": 1.0}}}],
    }),
    "rllm": each(lambda i, q, a, s: {
        "id": f"{i}:{s}", "task": {"id": f"p{i}", "instruction": q}, "is_correct": s < 2,
        "trajectories": [{"uid": "u", "name": "solver", "output": None, "steps": [
            {"input": None, "output": None, "model_response": said(i, s),
             "thought": thinking(i), "chat_completions": [{"role": "user", "content": q}]}]}],
    }),
    "AReaL": each(lambda i, q, a, s: {
        "task_id": i, "sample_idx": s, "seqlen": 60, "prompt_len": 20, "reward": float(s < 2),
        "prompt": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "completion": f"{thinking(i)}\n</think>{said(i, s)}<|im_end|>",
    }),
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
        "key": f"p{i}-{s}", "request": {"contents": [{"role": "user", "parts": [{"text": q}]}]},
        "response": {"candidates": [{
            "content": {"parts": [{"text": thinking(i), "thought": True}, {"text": said(i, s)}]},
            "finishReason": "STOP",
        }]},
    }),
    "Bedrock": each(lambda i, q, a, s: {
        "recordId": f"p{i}-{s}", "modelInput": {"messages": [{"role": "user", "content": [
            {"type": "text", "text": q}]}]},
        "modelOutput": {"content": [{"type": "text", "text": whole(i, s)}],
                        "stop_reason": "end_turn"},
    }),
    "Bedrock, Titan": each(lambda i, q, a, s: {
        "recordId": f"p{i}-{s}", "modelInput": {"inputText": q},
        "modelOutput": {"inputTextTokenCount": 8, "results": [
            {"tokenCount": 40, "outputText": whole(i, s), "completionReason": "FINISH"}]},
    }),
    "Ollama": each(lambda i, q, a, s: {
        "question": q, "gold": a, "done_reason": "stop", "eval_count": 40,
        "message": {"role": "assistant", "content": said(i, s), "thinking": thinking(i)},
    }),
    "simple-evals": each(lambda i, q, a, s: {
        "score": float(s < 2), "html": "", "reference": a,
        "convo": [{"role": "user", "content": q}, {"role": "assistant", "content": whole(i, s)}],
    }),
    "evalscope predictions": each(lambda i, q, a, s: {
        "index": 4 * i + s, "model": "m", "messages": asked_and_said(i, q, s),
        "model_output": {"choices": [{"message": asked_and_said(i, q, s)[1],
                                      "stop_reason": "stop"}], "usage": {"output_tokens": 40}},
    }),
    "evalscope reviews": each(lambda i, q, a, s: {
        "index": 4 * i + s, "target": a, "messages": asked_and_said(i, q, s), "sample_score": {
            "score": {"value": {"acc": float(s < 2)}, "extracted_prediction": "x",
                      "prediction": said(i, s)},
            "sample_id": 4 * i + s, "group_id": i, "generation_index": s}},
    ),
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
        "train_trial_index": s, "result": {"completions": [{
            "text": said(i, s), "thinking": {"text": thinking(i)}, "tokens": [],
            "finish_reason": {"reason": "stop"}}]}})},
    "SkyThought": {str(n): {
        "problem": q, "answer": a, "_index": n, "prompt": f"Think. {q}", "responses": [
            {"content": text, "correctness": s < 2, "reason": ""} for s, text in enumerate(texts)],
        "token_usages": [{"completion_tokens": 40, "prompt_tokens": 20}] * 4}
        for n, (i, q, a, texts) in enumerate(per_problem(lambda *row: row))},
    "Evalchemy": {"results": {"AIME24": {"num_total": 6, "run_stats": [{"accuracy": 0.5}], "examples": [
        {"id": str(i), "problem": q, "expected_answer": a, "model_outputs": texts,
         "model_answers": ["x"] * 4} for i, q, a, texts in per_problem(lambda *row: row)]}},
        "config": {"model": "m"}, "date": 1.0},
    "OpenCompass results": {"accuracy": 50.0, "details": {"type": "GEN"} | {str(n): {
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


# What holds no reference answer: it comes from a file of problems, or (LiveCodeBench) from none.
WITHOUT = ("OpenAI", "Anthropic", "evalscope predictions", "rllm", "AReaL", "LiveCodeBench",
           "OpenRLHF", "Gemini", "Bedrock")  # fmt: skip


@pytest.fixture
def problems(write):
    return str(write("problems.jsonl", [
        {"id": f"p{i}", "question": q, "answer": a} for i, q, a in PROBLEMS]))  # fmt: skip


def check(path, tmp_path, problems=None):
    options = Options()
    found = summarise_measured(measure_files([path], options), options)["files"][0]
    group = found["groups"]["(all)"]
    assert (found["reading"]["responses_used"], group["problems"]) == (24, 6)
    assert group["markers"]["paper-en"]["words"]["wait"]["count"] == 24
    assert group["markers"]["paper-en"]["thinking"]["count"] == 24
    assert (group["thinking"]["share"]["value"], group["truncated"]["share"]["value"]) == (1, 0)
    assert not any("stop reason" in note for note in found["reading"]["notes"])
    options = GradeOptions(workers=1, problems=problems)
    (graded,) = grade_files([path], tmp_path / "graded.jsonl", options)
    assert graded["score"]["value"] == 0.5
    if graded["agreement"] is not None:
        assert graded["agreement"]["agree"] == graded["agreement"]["labelled"] == 24


@pytest.mark.parametrize("name", LINES)
def test_lines(name, write, tmp_path, problems):
    check(write("a.jsonl", LINES[name]), tmp_path, problems if name.startswith(WITHOUT) else None)


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
        "step": 5, "prompt": f"user\n{q}\nassistant\n", "completion": whole(i, s),
        "think_format_reward": 1.0, "accuracy_reward": float(s < 2), "solution": f"${a}$",
        "gold_parsed": f"[{a}]", "advantage": 0.5,
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


@pytest.mark.parametrize("parquet", [False, True])
def test_a_wide_table(parquet, tmp_path):
    rows = per_problem(lambda i, q, a, texts: {
        "problem": q, "answer": a, "score_2": 0.0, "score_0": 1.0, "score_1": 1.0, "score_3": 0.0,
        **{f"Output {s}": text for s, text in enumerate(texts)}})  # fmt: skip
    path, out = tmp_path / "a.table", io.StringIO()
    table = csv.DictWriter(out, rows[0])
    table.writeheader()
    table.writerows(rows)
    path.write_text(out.getvalue())
    if parquet:
        pq.write_table(pa.Table.from_pylist(rows), path)
    check(path, tmp_path)


@pytest.mark.parametrize("name", ["vLLM", "SGLang"])
def test_texts_of_a_benchmark_answer_as_many_questions(name, tmp_path):
    texts = each(lambda i, q, a, s: whole(i, s))
    path = tmp_path / "a.json"
    path.write_text(json.dumps({
        "backend": name, "request_rate": "inf", "completed": 24, "input_lens": [20] * 24,
        "output_lens": [*range(40, 64)], "itls": [[0.1]] * 24, "generated_texts": texts,
        "errors": [""] * 24}))  # fmt: skip
    (found,) = measure_files([path], Options())
    assert (found.reading.used, len(found.groups["(all)"].sums)) == (24, 24)
    assert found.reading.fields["tokens"] == {"output_lens": 24}


def test_a_solution_is_the_response_where_nothing_is_asked(write, tmp_path):
    samples = each(lambda i, q, a, s: {"task_id": f"HumanEval/{i}", "solution": whole(i, s)})
    path = write("samples.jsonl", samples)
    (found,) = measure_files([path], Options())
    assert (found.reading.used, len(found.groups["(all)"].sums)) == (24, 6)
    with pytest.raises(EpistillError, match="no reference answer"):
        grade_files([path], tmp_path / "graded.jsonl", GradeOptions(workers=1))
    evaluated = {"eval": {one["task_id"]: [one | {"plus_status": "fail"}] for one in samples}}
    path.write_text(json.dumps(evaluated | {"date": "2026-11-01", "pass_at_k": {"base": {}}}))
    (found,) = measure_files([path], Options())
    assert (found.reading.used, len(found.groups["(all)"].sums)) == (6, 6)


def test_log_likelihoods_are_no_responses(write):
    path = write("samples_arc.jsonl", [{
        "doc_id": 0, "target": "2", "filter": "none", "filtered_resps": [["-4.5", "False"]],
        "resps": [[["-4.5", "False"]], [["-1.5", "True"]]]}])  # fmt: skip
    with pytest.raises(EpistillError, match="1 log-likelihoods, no text"):
        measure_files([path], Options())


def test_the_letter_of_a_reference_that_is_a_text(write, tmp_path):
    path = write("a.jsonl", [{
        "instance": {"id": f"id{i}", "input": {"text": "Which?"}, "references": [
            {"output": {"text": "red"}, "tags": []}, {"output": {"text": "blue"}, "tags": ["correct"]}]},
        "output_mapping": {"A": "red", "B": "blue"},
        "result": {"completions": [{"text": f"Answer: {said}"}]}} for i, said in enumerate("AB")])  # fmt: skip
    (graded,) = grade_files([path], tmp_path / "graded.jsonl", GradeOptions(workers=1))
    assert (graded["score"]["value"], graded["graders"]) == (0.5, {"choice": 2})


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


@pytest.mark.parametrize(("zstd", "chunked"), [(False, False), (False, True), (True, False)])
def test_an_inspect_log(zstd, chunked, tmp_path):
    """Inspect compresses with zstd, number 93 among a zip's methods, which Python learns in 3.14."""
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if zstd else zipfile.ZIP_DEFLATED) as log:
        log.writestr("header.json", '{"version": 2}')
        for sample in each(inspect_sample):
            data = json.dumps(sample).encode()
            packed = pa.compress(data, "zstd", asbytes=True) if zstd else data
            name = f"samples/{sample['id']}_epoch_{sample['epoch']}"
            log.writestr(f"{name}/sample.json" if chunked else f"{name}.json", packed)
            if zstd:
                log.infolist()[-1].compress_type = 93
            if chunked:
                log.writestr(f"{name}/messages/0.json", "[]")
    check(path, tmp_path)


def test_the_given_files(shared_cases):
    options = Options()
    for path in sorted((shared_cases / "formats").iterdir()):
        found = summarise_measured(measure_files([path], options), options)["files"][0]
        group = found["groups"]["(all)"]
        assert (found["reading"]["responses_used"], group["problems"]) == (300, 75), path
        assert group["markers"]["paper-en"]["words"]["wait"]["count"] == 300, path
