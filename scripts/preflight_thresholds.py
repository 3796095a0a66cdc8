"""What verdicts rest on, from the finished validation study.

    epistill study lab-preflight && python scripts/preflight_thresholds.py runs/lab-preflight

Copies the study's outcomes, with their provenance, into the package's thresholds.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from epistill.store import read_json, write_json

TARGET = Path(__file__).resolve().parents[1] / "src/epistill/preflights/thresholds.json"


def main(folder: Path) -> None:
    report = read_json(folder / "report.json")
    (found,) = report["preflights"]
    if report["runs_finished"] < report["runs_total"]:
        raise SystemExit(f"{folder}: {report['runs_finished']} of {report['runs_total']} runs done")
    measured, prediction = found["report"], found["prediction"]
    write_json(
        TARGET,
        {
            "format": 1,
            "command": f"epistill study {report['name']}",
            "arms": len(prediction["arms"]),
            "seeds": report["seeds"],
            "problems": measured["problems"],
            "samples": measured["samples"],
            "model": measured["identity"],
            "commit_of_runs": read_json(
                folder / "runs" / prediction["arms"][0]["id"] / "seed-0" / "environment.json"
            )["commit"],
            "commit_of_preflight": measured["environment"]["commit"],
            "outcomes": prediction["outcomes"],
            "correlations": prediction["correlations"],
        },
    )
    print(TARGET)


main(Path(sys.argv[1]))
