"""Fixtures of the browser tests: a headless Chromium, pages of it, and running servers."""

import shutil

import pytest
from browser_driver import DESKTOP, Server

from flowgrain.evaluate.study.server import ServeConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
UNHURRIED = {"token_rate": 1000.0, "address_rate": 10_000.0, "entries_per_minute": 60_000.0}

# what the page must never cause: a breach of its own content security policy
_WATCH = """
window.breaches = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
  window.breaches.push(`${violatedDirective} ${blockedURI}`);
});
"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; closed with the module, because its event loop would be in the way of others."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """``open_page(url, DESKTOP, color_scheme=...)``: a page of its own context; faults of the page fail the test."""
    contexts, faults = [], []

    def make(url=None, device=DESKTOP, context=None, **options):
        if context is None:
            context = browser.new_context(**device, **options)
            context.set_default_timeout(10_000)
            context.add_init_script(_WATCH)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        if url is not None:
            page.goto(url)
        return page

    yield make
    breaches = [found for context in contexts for page in context.pages for found in page.evaluate("window.breaches")]
    for context in contexts:
        context.close()
    assert not faults and not breaches


@pytest.fixture
def serve():
    """``serve(study, entry=...)``: a running server."""
    servers = []

    def make(study, **options):
        servers.append(Server(study, ServeConfig(**{**UNHURRIED, **options})))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
