import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, written):
    """Open the report; fails on any message of the page (errors, policy violations) and on any request."""
    contexts, messages, requests = [], [], []

    def open_page(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{written.page}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    assert [url[:60] for url in requests if not url.startswith(("file:", "data:"))] == []


def cut(page):
    return page.eval_on_selector(".stage", "stage => stage.style.getPropertyValue('--cut')")


def source(page, side):
    return page.get_attribute(f"[data-side={side}]", "src")


def in_grid(page, row, column):
    return page.get_attribute(f'table img[data-rows~="{row}"][data-column="{column}"]', "src")


def test_the_divider_moves_by_keyboard(opened):
    page = opened()
    page.focus(".slider input[type=range]")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert cut(page) == "53%"
    page.keyboard.press("Home")
    assert cut(page) == "0%"
    assert page.get_attribute(".slider input", "aria-valuetext").startswith("0 % base, 100 % baseline ")


def test_the_divider_follows_the_mouse(opened):
    page = opened()
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20, steps=4)
    page.mouse.up()
    assert cut(page) == "20%"
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20)
    assert cut(page) == "20%"


def test_the_divider_follows_a_finger(opened):
    page = opened(width=390, has_touch=True, is_mobile=True)
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    assert cut(page) == "75%"


def test_prompt_and_variants_are_picked_from_the_pictures_of_the_page(opened):
    page = opened()
    assert source(page, "first") == in_grid(page, 0, 1) and source(page, "second") == in_grid(page, 0, 2)
    page.select_option("[data-pick=row]", "5")
    page.select_option("[data-pick=second]", "3")
    assert source(page, "first") == in_grid(page, 5, 1) and source(page, "second") == in_grid(page, 5, 3)
    page.click("[data-swap]")
    assert source(page, "first") == in_grid(page, 5, 3) and source(page, "second") == in_grid(page, 5, 1)
    page.click("[data-step='1']")
    assert source(page, "first") == in_grid(page, 6, 3)
    page.click("[data-open='1']")
    assert source(page, "first") == in_grid(page, 1, 3)
    assert page.evaluate("document.activeElement.type") == "range"


def test_a_prompt_without_own_reference_says_so(opened):
    page = opened()
    page.select_option("[data-pick=second]", "0")
    assert source(page, "second") == in_grid(page, 0, 0)
    page.select_option("[data-pick=row]", "3")
    assert page.inner_text("[data-status]") == "No picture of reference (real picture) for this prompt."
    assert page.get_attribute("[data-side=second]", "src") is None


def test_the_first_and_last_prompt_have_no_neighbour(opened):
    page = opened()
    assert page.is_disabled("[data-step='-1']") and page.is_enabled("[data-step='1']")
    page.select_option("[data-pick=row]", "7")
    assert page.is_enabled("[data-step='-1']") and page.is_disabled("[data-step='1']")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_screen(opened, width, scheme):
    page = opened(width=width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_but_the_slider_is_there(opened):
    page = opened(java_script_enabled=False)
    assert page.locator(".stage").is_hidden() and page.locator(".controls").is_hidden()
    assert "side by side below" in page.inner_text(".slider")
    assert page.locator("[data-open]").first.is_hidden()
