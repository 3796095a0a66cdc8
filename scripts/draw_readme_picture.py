"""docs/report.png from the committed data: the top of the lab study's page, by a headless Chromium.

Usage: python scripts/draw_readme_picture.py (needs `chromium` or `google-chrome` on the path, and
pillow: 256 colours are a third of the bytes).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from epistill.studies.draw_report import draw_again

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium or google-chrome on the path; install one")
    with tempfile.TemporaryDirectory() as folder:
        page, _ = draw_again(DOCS / "results" / "lab", Path(folder) / "page.html")
        subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", "--window-size=1200,1400",
                "--virtual-time-budget=5000", f"--screenshot={DOCS / 'report.png'}", page.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )  # fmt: skip
    picture = Image.open(DOCS / "report.png").convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    main()
