"""The page is usable by keyboard, by screen reader, enlarged, in the dark and on a small screen."""

import pytest
from browser_checks import assert_accessible, assert_fits, assert_touchable, tab_through
from browser_driver import DESKTOP, NARROW, PHONE, Sitter, until

pytest_plugins = ("browser_fixtures",)

ENLARGED = {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2}  # 1280 x 900 at 200 %


def _show_everything(page, check):
    """``check()`` on every kind of page and dialog of a small study."""
    sitter = Sitter(page)
    page.get_by_role("button", name="I agree").wait_for()
    check()
    sitter.agree()
    sitter.await_pictures()
    check()
    sitter.by_click([[0], [1], [2], [3]])
    sitter.await_pictures()
    sitter.pictures.nth(2).click()
    check()
    page.get_by_role("button", name="Enlarge picture B").click()
    check()
    sitter.press("Escape")
    page.get_by_role("button", name="Help").click()
    check()
    sitter.press("Escape")
    page.get_by_role("button", name="Continue later").click()
    check()
    sitter.press("Escape")
    for picture in (0, 1, 3):
        sitter.pictures.nth(picture).click()
    sitter.next()
    page.get_by_role("heading", name="Thank you").wait_for()
    check()
    page.get_by_role("button", name="Withdraw").click()
    check()
    page.goto(f"{page.url}#p=broken")
    page.get_by_role("heading", name="This link does not work").wait_for()
    check()


@pytest.mark.parametrize(
    ("device", "scheme"),
    [
        pytest.param(DESKTOP, "dark", id="desktop-dark"),
        pytest.param(NARROW, "light", id="narrow-light"),
        pytest.param(ENLARGED, "light", id="enlarged-light"),
        pytest.param(DESKTOP, "light", id="desktop-light", marks=pytest.mark.slow),
        pytest.param(NARROW, "dark", id="narrow-dark", marks=pytest.mark.slow),
        pytest.param(ENLARGED, "dark", id="enlarged-dark", marks=pytest.mark.slow),
    ],
)
def test_every_page_is_accessible(device, scheme, make_study, serve, open_page):
    study = make_study(per_participant=1, attention={"degraded": 0, "repeated": 0})
    page = open_page(serve(study).url, device, color_scheme=scheme)

    def check():
        assert_accessible(page)
        assert_fits(page)
        assert_touchable(page)

    _show_everything(page, check)


@pytest.mark.parametrize("variants", [2, 6])
def test_other_numbers_of_pictures_fit(variants, make_study, serve, open_page):
    study = make_study(comparison={"arms": [f"arm {number}" for number in range(variants)]})
    page = open_page(serve(study).url, NARROW)
    sitter = Sitter(page)
    sitter.agree()
    sitter.await_pictures()
    for picture in range(variants):
        sitter.pictures.nth(picture).tap()
    until(page, lambda: sitter.ranks == list(range(1, variants + 1)))
    assert_fits(page)
    assert_touchable(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert_fits(page)


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_tab_key_goes_through_an_item_in_order(device, make_study, serve, open_page):
    page = open_page(serve(make_study()).url, device)
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_keyboard([[0], [1], [2], [3]])
    sitter.await_pictures()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    names = tab_through(page)
    assert names == [
        "Help",
        *(f"Enlarge reference {n}" for n in (1, 2, 3)),
        *(name for letter in "ABCD" for name in (f"Picture {letter}, no rank yet", f"Enlarge picture {letter}")),
        "Rank 1, best: empty; the next picture goes here",
        *(f"Rank {n}: empty" for n in (2, 3)),
        "Rank 4, worst: empty",
        "Next set",
        "Information and consent",
        "Continue later",
        "Withdraw",
    ]  # fmt: skip


def test_a_screen_reader_hears_what_happens(make_study, serve, open_page):
    page = open_page(serve(make_study()).url)
    sitter = Sitter(page)
    sitter.agree()
    said = page.locator("[aria-live=polite]")
    sitter.await_pictures()
    sitter.press("3")
    assert said.inner_text() == "Go to a picture first: press the right arrow key."
    sitter.press("ArrowRight", "2")
    assert said.inner_text() == "Picture A: rank 2. 1 of 4 placed."
    assert page.get_by_role("button", name="Picture A, rank 2", exact=True).get_attribute("aria-pressed") == "true"
    sitter.press("ArrowRight", "2")
    assert said.inner_text() == "Picture B: rank 2, shared with A. 2 of 4 placed."
    sitter.press("7")
    assert said.inner_text() == "Ranks go from 1 to 4."
    sitter.press("Enter")
    assert said.inner_text() == page.locator(".hint").inner_text() == "Not placed yet: C, D."
    sitter.press("Backspace")
    assert said.inner_text() == "Picture B: rank taken back."
    sitter.press("Space")
    assert sitter.ranks == [2, 2, None, None], "Space gives the rank that was taken back last"
    sitter.press("?")
    assert page.get_by_role("dialog", name="Help").is_visible()
    sitter.press("Escape")
    sitter.press("ArrowRight", "1", "ArrowRight", "3")
    assert said.inner_text().endswith("All placed. Enter goes on.")
    page.get_by_role("button", name="Clear").click()
    assert sitter.ranks == [None] * 4
    assert page.evaluate("document.activeElement.ariaLabel") == "Picture A, no rank yet"


def test_arrow_keys_follow_the_rows(make_study, serve, open_page):
    page = open_page(serve(make_study()).url, PHONE)
    sitter = Sitter(page)
    sitter.agree()
    sitter.await_pictures()
    visited = []
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowLeft"):
        sitter.press(key)
        visited.append(page.evaluate("document.activeElement.querySelector('img').alt"))
    assert visited == [f"Picture {letter}" for letter in "ACDBBA"]


def test_the_large_view_by_keyboard(make_study, serve, open_page):
    page = open_page(serve(make_study()).url)
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_keyboard([[0], [1], [2], [3]])
    sitter.await_pictures()
    title, level = page.locator(".zoom-title"), page.locator(".zoom-level")
    spot = "() => document.querySelector('.zoom-stage img:not([hidden])').getAttribute('style')"
    sitter.press("ArrowRight", "ArrowRight", "z")
    assert title.inner_text() == "Picture B, no rank yet"
    fitted = level.inner_text()
    sitter.press("+", "+", "Shift+ArrowRight", "ArrowDown")
    assert level.inner_text() != fitted
    enlarged = page.evaluate(spot)
    sitter.press("ArrowRight")
    assert title.inner_text() == "Picture C, no rank yet"
    assert page.evaluate(spot) == enlarged, "another picture, the same spot"
    sitter.press("2")
    assert title.inner_text() == "Picture C, rank 2"
    sitter.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert title.inner_text() == "Picture D, no rank yet"
    sitter.press("r", "ArrowRight")
    assert title.inner_text() == "Reference 2"
    sitter.press("r", "0")
    assert (title.inner_text(), level.inner_text()) == ("Picture D, no rank yet", fitted)
    sitter.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.querySelector('img').alt") == "Picture B", "the focus is back"
    assert sitter.ranks == [None, None, 2, None]


def test_the_large_view_by_mouse_and_fingers(make_study, serve, open_page):
    page = open_page(serve(make_study()).url, PHONE)
    sitter = Sitter(page)
    sitter.agree()
    sitter.await_pictures()
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    def shows(name):
        return page.locator(".zoom-title").inner_text().startswith(name)

    def percent():
        return int(page.locator(".zoom-level").inner_text().split()[0])

    def left():
        return page.locator(".zoom-stage img:not([hidden])").evaluate("(image) => image.getBoundingClientRect().left")

    page.get_by_role("button", name="Enlarge picture A").tap()
    until(page, lambda: page.locator("dialog.zoom").is_visible() and shows("Picture A"))
    fitted = percent()
    touch("touchStart", (300, 400))
    touch("touchMove", (250, 405))
    touch("touchMove", (200, 405))
    touch("touchEnd")
    until(page, lambda: shows("Picture B"))  # a swipe goes on
    touch("touchStart", (180, 400), (220, 400))
    touch("touchMove", (140, 400), (260, 400))
    touch("touchMove", (120, 400), (280, 400))
    touch("touchEnd")
    until(page, lambda: 3 * fitted < percent() < 5 * fitted)  # fingers went from 40 to 160 px
    assert shows("Picture B")
    page.get_by_role("button", name="Fit").click()  # a tap right after a swift pinch stops the motion, as on phones
    until(page, lambda: percent() == fitted)
    page.mouse.move(100, 300)
    page.mouse.wheel(0, -400)
    until(page, lambda: percent() > fitted)
    before = left()
    page.mouse.down()
    page.mouse.move(140, 300, steps=2)
    page.mouse.up()
    until(page, lambda: abs(left() - before - 40) < 1)
    page.get_by_role("button", name="Close large view").click()
    until(page, lambda: not page.locator("dialog").is_visible())


def test_motion_is_reduced_where_asked(make_study, serve, open_page):
    moving = """() => [...document.querySelectorAll("*")].map((e) => getComputedStyle(e))
        .filter((s) => s.transitionDuration !== "0s" || s.animationName !== "none").length"""
    server = serve(make_study())
    counts = []
    for wish in ("reduce", "no-preference"):
        page = open_page(server.url, reduced_motion=wish)
        Sitter(page).agree()
        counts.append(page.evaluate(moving))
    assert counts[0] == 0 < counts[1]
