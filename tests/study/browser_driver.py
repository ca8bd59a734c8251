"""Drives the page of a study in a headless browser, against the real server on this machine."""

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flowgrain.evaluate.study.folder import open_study
from flowgrain.evaluate.study.screening import sittings
from flowgrain.evaluate.study.server import build_app

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NARROW = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}

_RANKS = "(badges) => badges.map((badge) => (badge.hidden ? null : badge.innerText))"


class Server:
    """The study's server on a port of its own, that can be stopped and started again."""

    def __init__(self, study, serve):
        self.study = study
        self.serve = serve
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}{self.serve.root_path}/"

    def start(self):
        import uvicorn

        app = build_app(open_study(self.study.folder, None), self.serve)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


class Sitter:
    """Somebody in front of a page."""

    def __init__(self, page):
        self.page = page

    @property
    def heading(self):
        return self.page.locator("h1").inner_text()

    @property
    def pictures(self):
        return self.page.locator(".picture")

    @property
    def places(self):
        return self.page.locator(".place")

    def agree(self):
        self.page.get_by_role("button", name="I agree").click()
        self.page.locator("h1", has_text="Practice set").wait_for()

    def await_pictures(self):
        """Until every picture is shown."""
        self.page.wait_for_function("() => [...document.querySelectorAll('.picture img')].every((i) => i.naturalWidth)")

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Waits for the next page after what is done inside."""
        before = self.heading
        yield
        self.page.wait_for_function("(before) => document.querySelector('h1').innerText !== before", arg=before)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def by_keyboard(self, tiers):
        rank = {place: number for number, tier in enumerate(tiers, 1) for place in tier}
        self.press("ArrowRight")  # from the heading to the first picture
        for place in range(self.pictures.count()):
            self.press(str(rank[place]), "ArrowRight")
        self.page.locator(".tray .primary[aria-disabled=false]").wait_for()
        with self.going_on():
            self.press("Enter")

    def by_click(self, tiers, tap=False):
        for number, tier in enumerate(tiers, 1):
            for again, place in enumerate(tier):
                if again:  # the rank is taken: it has to be chosen
                    self.touch(self.places.nth(number - 1), tap)
                self.touch(self.pictures.nth(place), tap)
        self.next(tap)

    def by_tap(self, tiers):
        self.by_click(tiers, tap=True)

    def by_drag(self, tiers):
        for number, tier in enumerate(tiers, 1):
            for place in tier:
                self.drag(self.pictures.nth(place), self.places.nth(number - 1))
        self.next()

    def next(self, tap=False):
        with self.going_on():
            self.touch(self.page.locator(".tray .primary"), tap)

    def touch(self, locator, tap):
        if tap:
            locator.tap()
        else:
            locator.click()

    def drag(self, source, target):
        """With the mouse, from the middle of one thing to the middle of another."""
        source.scroll_into_view_if_needed()
        mouse = self.page.mouse
        mouse.move(*middle(source))
        mouse.down()
        mouse.move(*middle(target), steps=4)
        mouse.up()

    def finger(self, source, target, hold=True):
        """Touches one thing, holds it until it can be dragged, or not, and moves to another."""
        source.tap(trial=True)  # in view, and no longer moved by a scroll before
        session = self.page.context.new_cdp_session(self.page)

        def send(kind, *points):
            touches = [{"x": x, "y": y} for x, y in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        start, end = middle(source), middle(target)
        send("touchStart", start)
        if hold:
            self.page.locator(".ghost").wait_for()
        for part in (0.3, 0.6, 1.0):
            send("touchMove", tuple(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        send("touchEnd")

    @property
    def ranks(self):
        """The rank of each picture, None where there is none."""
        texts = self.page.locator(".card .badge").evaluate_all(_RANKS)
        return [None if text is None else int(text) for text in texts]

    def token(self):
        """The token in the link that the page offers."""
        self.page.get_by_role("button", name="Continue later").click()
        link = self.page.get_by_label("Your personal link").input_value()
        self.press("Escape")
        return link.split("#p=")[1]


def until(page, condition):
    """Waits until a condition holds: a tap is taken up a moment after the finger leaves."""
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("it never came true")


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def intended(position, pictures=4, ties=True):
    """Tiers of places that a participant wants to give at a position; some with a tie."""
    order = random.Random(f"position {position}").sample(range(pictures), pictures)
    if ties and position % 3 == 1:
        return [sorted(order[:2]), *([place] for place in order[2:])]
    return [[place] for place in order]


def stored(study, dimension="overall"):
    """What the database holds of its only participant: position -> tiers of places, position -> number of revisions."""
    (sitting,) = sittings(study.plan, study.store.collected())
    given = sitting.given
    return {p: given[p].tiers[dimension] for p in given}, {p: given[p].revisions for p in given}
