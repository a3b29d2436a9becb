"""A real browser, where there is one, to open pages in."""

import shutil
import subprocess

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PLAIN = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def shown_page(address, profile, *options, timeout=180) -> subprocess.CompletedProcess:
    """Open a page; its document as it then stands is in the output.

    Args:
        address: of the page.
        profile: a folder for what the browser keeps.
        options: further ones of the browser.
        timeout: in seconds.
    """
    return subprocess.run(
        [CHROMIUM, *PLAIN, f"--user-data-dir={profile}", *options, "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
