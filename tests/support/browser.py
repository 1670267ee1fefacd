"""Pages in headless Chromium: what a script does with them, what they log, and what they would load."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

_BEFORE = """<script>
window.told = [];
window.addEventListener("error", (e) => told.push(`error: ${e.message}`));
window.addEventListener("unhandledrejection", (e) => told.push(`rejection: ${e.reason}`));
document.addEventListener("securitypolicyviolation", (e) => told.push(`would load: ${e.blockedURI}`));
for (const level of ["error", "warn"]) console[level] = (...what) => told.push(`${level}: ${what}`);
</script>"""
_AFTER = """<script>
window.addEventListener("load", () => {
  let found = null;
  try { found = (() => { %s })(); } catch (e) { told.push(`step: ${e}`); }
  setTimeout(() => {
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    const result = document.createElement("pre");
    result.id = "result-of-test";
    result.textContent = JSON.stringify({found, told, loaded});
    document.body.append(result);
  }, 50);
});
</script>"""


def drive(page: str, steps: str, folder: Path) -> Any:
    """Open a page, run JavaScript in it, and return what it returns.

    The page may log no error or warning, and load nothing: not from the network, and not from the disk.
    """
    assert BROWSER is not None
    file = folder / "page.html"
    # the policy comes first, so that it is in force for what the test adds
    opened = page.replace("<title>", f"{_BEFORE}<title>", 1).replace("</body>", f"{_AFTER % steps}</body>")
    file.write_text(opened, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1400,900", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    text = re.search(r'<pre id="result-of-test">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text is not None, done.stderr[-2000:]
    result = json.loads(unescape(text[1]))
    assert result["told"] == [] and result["loaded"] == []
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return result["found"]
