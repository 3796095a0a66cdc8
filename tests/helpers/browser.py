"""Pages in a headless Chromium: what their own script says, and how they look."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM: pages are not looked at on this machine"
)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def opened(page, profile, fragment=""):
    """What the page's script says of it (`facts.js`), and the page after its script."""
    done = subprocess.run(
        [
            CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=10000",
            "--dump-dom", page.as_uri() + fragment,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    body = re.search(r"<body[^>]*>", done.stdout)[0]
    return dict(re.findall(r'data-([a-z-]+)="(\w+)"', body)), done.stdout


def looked_at(pages, looks):
    """What scripts (each an async function's body) return in each page, by (name, width, scheme).

    Args:
        pages: Files by name.
        looks: Tuples of width, scheme (light, dark or print) and script, in their order. A page is
            opened anew for another width, but is printed as it lies open.
    """
    choreographer = pytest.importorskip("choreographer")

    async def look_at(browser, name, page):
        tab, opened_at, found = None, None, {}

        async def send(method, **parameters):
            return (await tab.send_command(method, parameters))["result"]

        async def evaluate(expression, **options):
            said = await send("Runtime.evaluate", expression=expression, **options)
            assert "exceptionDetails" not in said, said
            return said["result"].get("value")

        for width, scheme, script in looks:
            size = {"width": width, "height": 900, "deviceScaleFactor": 1}
            if tab is None or (scheme != "print" and width != opened_at):
                if tab is not None:
                    await browser.close_tab(tab.target_id)
                tab, opened_at = await browser.create_tab("about:blank"), width
                await send("Emulation.setDeviceMetricsOverride", **size, mobile=False)
                await send("Page.navigate", url=page.as_uri())
                for _ in range(1200):  # a busy machine draws slowly
                    if await evaluate("document.body?.dataset.requests !== undefined"):
                        break
                    await asyncio.sleep(0.1)
            await send("Emulation.setDeviceMetricsOverride", **size, mobile=False)
            # An open page changes its colours with the system's.
            wanted = [{"name": "prefers-color-scheme", "value": scheme}]
            paper = {"media": "print" if scheme == "print" else ""}
            await send("Emulation.setEmulatedMedia", features=wanted, **paper)
            run = {"awaitPromise": True, "returnByValue": True}
            found[name, width, scheme] = await evaluate(f"(async () => {{{script}}})()", **run)
        await browser.close_tab(tab.target_id)
        return found

    async def all_of_them():
        found = {}
        async with choreographer.Browser(path=CHROMIUM, headless=True) as browser:
            for name, page in pages.items():
                found |= await look_at(browser, name, page)
        return found

    return asyncio.run(all_of_them())
