"""Nothing that a study shows can run, no link leaks, and what goes wrong is told with what to do."""

import threading

from browser_driver import PHONE, Sitter, stored

pytest_plugins = ("browser_fixtures",)

HOSTILE = '<img src=x onerror="window.ran = 1"><script>window.ran = 2</script>{{ 7 * 7 }}'


def _titled(page, name):
    page.get_by_role("heading", name=name).wait_for()


def test_markup_in_texts_is_text(make_study, serve, open_page):
    dimension = {"name": "one", "title": f"Title {HOSTILE}", "question": f"Question {HOSTILE}"}
    study = make_study(
        comparison={"prompts": (f"Prompt {HOSTILE}", f"Other {HOSTILE}"), "seeds": 1},
        per_participant=2,
        title=f"Study {HOSTILE}",
        consent=f"Consent {HOSTILE}\n\nSecond paragraph",
        dimensions=[dimension],
        attention={"degraded": 0, "repeated": 0},
    )
    # the name of a data set is a folder in this fixture, so its description is hostile through the answer alone
    page = open_page()
    page.route("**/api/state", _with_hostile_dataset)
    page.goto(serve(study).url)
    sitter = Sitter(page)
    assert sitter.heading == page.title() == f"Study {HOSTILE}"
    assert page.locator(".consent p").all_inner_texts() == [f"Consent {HOSTILE}", "Second paragraph"]
    sitter.agree()
    sitter.by_keyboard([[0], [1], [2], [3]])
    sitter.await_pictures()
    assert page.locator(".prompt").inner_text() in {f"Prompt {HOSTILE}", f"Other {HOSTILE}"}
    assert page.locator(".dataset").inner_text().endswith(f"Data {HOSTILE}")
    assert page.locator(".question").inner_text() == f"Question {HOSTILE}"
    assert page.locator(".item .eyebrow").nth(2).inner_text() == f"Title {HOSTILE}"
    page.get_by_role("button", name="Information and consent").click()
    assert page.locator("dialog[open] p").first.inner_text() == f"Consent {HOSTILE}"
    assert page.evaluate("window.ran") is None
    assert page.locator("main script, main [onerror], img[src=x]").count() == 0


def _with_hostile_dataset(route):
    response = route.fetch()
    state = response.json()
    if state.get("item"):
        state["item"]["dataset"] = f"Data {HOSTILE}"
    route.fulfill(response=response, json=state)


def test_the_token_stays_out_of_every_address(make_study, serve, open_page):
    server = serve(make_study(per_participant=1, attention={"degraded": 0, "repeated": 0}))
    first = Sitter(open_page(server.url))
    first.agree()
    token = first.token()
    page = open_page()
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.goto(f"{server.url}#p={token}")
    sitter = Sitter(page)
    page.locator("h1", has_text="Practice set").wait_for()
    sitter.by_keyboard([[0], [1], [2], [3]])
    assert len(requests) > 20
    assert all(request.url.startswith(server.url) and token not in request.url for request in requests)
    assert [r.url for r in requests if r.headers.get("referer")] == []
    assert token not in page.url and page.evaluate("document.cookie") == ""


def test_behind_the_prefix_of_a_proxy(make_study, serve, open_page):
    server = serve(make_study(per_participant=1, attention={"degraded": 0, "repeated": 0}), root_path="/a/b-c")
    page = open_page()
    paths = set()
    page.on("request", lambda request: paths.add(request.url))
    page.goto(server.url.removesuffix("/"))  # the slash is added by the server
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_click([[0], [1], [2], [3]])
    token = sitter.token()
    assert all(path == server.url.removesuffix("/") or path.startswith(server.url) for path in paths)
    other = open_page(f"{server.url}#p={token}", PHONE)
    other.locator("h1", has_text="Set 1 of 1").wait_for()


def test_pages_for_what_goes_wrong(make_study, serve, open_page):
    study = make_study(participants=1)
    invited = serve(study, entry="links")
    page = open_page(invited.url)
    _titled(page, "Please open your personal link")
    for broken in ("#p=short", f"#p={'x' * 32}"):
        page.goto(f"{invited.url}{broken}")
        _titled(page, "This link does not work")
        assert broken not in page.url
    recruited = serve(study, entry="external_id")
    page.goto(recruited.url)
    _titled(page, "Please come from the recruitment page")
    page.goto(f"{recruited.url}?PROLIFIC_PID=%3Cscript%3E")
    _titled(page, "Please come from the recruitment page")

    open_to_all = serve(study)
    page.goto(open_to_all.url)
    sitter = Sitter(page)
    sitter.agree()
    late = open_page(open_to_all.url)
    _titled(late, "The study is full")

    study.store.close()
    for picture in range(4):
        sitter.pictures.nth(picture).click()
    sitter.next()
    _titled(page, "The study is closed")
    late.reload()
    _titled(late, "The study is closed")


def test_nothing_is_stored_before_somebody_agrees(make_study, serve, open_page):
    study = make_study()
    server = serve(study, entry="external_id")
    page = open_page(f"{server.url}?PROLIFIC_PID=abc&SESSION_ID=s")
    page.get_by_role("button", name="I agree").wait_for()
    assert "4 pictures" in page.locator(".points").inner_text()
    assert len(study.store.collected().participants) == 0
    Sitter(page).agree()
    assert len(study.store.collected().participants) == 1


def test_a_session_that_is_gone_starts_anew(make_study, serve, open_page):
    study = make_study()
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    study.store.withdraw(study.store.collected().participants[0].id)
    page.reload()
    page.get_by_text("Your earlier session on this device is no longer valid").wait_for()
    sitter.agree()


def test_too_many_requests_wait_and_go_on(make_study, serve, open_page):
    server = serve(make_study())
    page = open_page()
    refusals = []

    def refuse_once(route):
        refusals.append(route.request.url)
        if len(refusals) > 1:
            route.continue_()
        else:
            body = {"error": "too_many_requests", "message": "Too many requests."}
            route.fulfill(status=429, headers={"Retry-After": "1"}, json=body)

    page.route("**/api/study", refuse_once)
    page.goto(server.url)
    page.locator(".banner", has_text="Too many requests at the moment").wait_for()
    page.get_by_role("button", name="I agree").wait_for()
    assert len(refusals) == 2 and not page.locator(".banner").is_visible()


def test_withdrawing_deletes_and_forgets(make_study, serve, open_page):
    study = make_study()
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_click([[0], [1], [2], [3]])
    page.get_by_role("button", name="Withdraw").click()
    with sitter.going_on():
        page.get_by_role("button", name="Keep taking part").click()
    assert sitter.heading.startswith("Set 1")
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("button", name="Withdraw and delete my answers").click()
    _titled(page, "You have withdrawn")
    assert page.get_by_text("What is kept").is_visible()
    assert len(study.store.collected().answers) == 0
    assert page.evaluate("Object.keys(localStorage).length") == 0
    page.reload()
    page.get_by_role("button", name="I agree").wait_for()


def test_nobody_judges_a_picture_that_is_not_there(make_study, serve, open_page):
    server = serve(make_study())
    page = open_page()
    broken = threading.Event()
    broken.set()
    blocked = []

    def lose_one(route):
        if not blocked:
            blocked.append(route.request.url)
        if broken.is_set() and route.request.url.startswith(blocked[0]):
            route.abort()
        else:
            route.continue_()

    page.route("**/media/*", lose_one)
    page.goto(server.url)
    sitter = Sitter(page)
    sitter.agree()
    page.get_by_text("This picture could not be loaded").wait_for()
    for picture in range(4):
        sitter.pictures.nth(picture).focus()
        sitter.press(str(picture + 1))
    sitter.press("Enter")
    assert sitter.heading == "Practice set" and page.locator(".hint").inner_text() == "Pictures are loading."
    broken.clear()
    page.get_by_role("button", name="Load again").click()
    sitter.await_pictures()
    assert not page.get_by_text("This picture could not be loaded").is_visible()
    sitter.next()


def test_without_local_storage(make_study, serve, open_page):
    study = make_study()
    page = open_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })")
    page.goto(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_keyboard([[0], [1], [2], [3]])
    assert stored(study)[0] == {0: [[0], [1], [2], [3]]}


def test_the_next_pictures_are_there_before_they_are_shown(make_study, serve, open_page):
    server = serve(make_study())
    page = open_page()
    fetched = []
    page.on("requestfinished", lambda request: fetched.append(request.url.removeprefix(server.url)))
    page.goto(server.url)
    sitter = Sitter(page)
    sitter.agree()
    page.wait_for_load_state("networkidle")
    before = set(fetched)
    sitter.by_keyboard([[0], [1], [2], [3]])
    shown = page.locator(".picture img").evaluate_all("(all) => all.map((image) => image.getAttribute('src'))")
    assert len(shown) == 4 and set(shown) <= before
