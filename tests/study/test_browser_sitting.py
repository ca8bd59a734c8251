"""Participants finish a study in a real browser; what they meant is what the database holds."""

import pytest
from browser_driver import DESKTOP, PHONE, Sitter, intended, stored, until

pytest_plugins = ("browser_fixtures",)

FORTY = {"per_participant": 37, "attention": {"degraded": 2, "repeated": 1}}
FORTY_PICTURES = {"prompts": tuple(f"prompt {number}" for number in range(10)), "seeds": 4}
WAYS = {"by_keyboard": DESKTOP, "by_click": DESKTOP, "by_drag": DESKTOP, "by_tap": PHONE}


def _sit(page, way, total):
    """From the first page to the completion code."""
    sitter = Sitter(page)
    sitter.agree()
    for position in range(total + 1):
        getattr(sitter, way)(intended(position))
    page.get_by_role("heading", name="Thank you").wait_for()
    return page.get_by_label("Your completion code").input_value()


def _wanted(total):
    return {position: [sorted(tier) for tier in intended(position)] for position in range(total + 1)}


@pytest.mark.parametrize("way", WAYS)
def test_a_participant_finishes(way, make_study, serve, open_page):
    study = make_study(per_participant=2)
    page = open_page(serve(study).url, WAYS[way])
    code = _sit(page, way, total=4)
    tiers, revisions = stored(study)
    assert tiers == _wanted(4)
    assert set(revisions.values()) == {1}
    assert code == study.store.collected().participants[0].completion_code


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_participant_finishes_forty_items(way, make_study, serve, open_page):
    study = make_study(**FORTY, comparison=FORTY_PICTURES)
    _sit(open_page(serve(study).url, WAYS[way]), way, total=40)
    tiers, revisions = stored(study)
    assert tiers == _wanted(40)
    assert set(revisions.values()) == {1}


def test_a_finger_holds_and_drags(make_study, serve, open_page):
    page = open_page(serve(make_study()).url, PHONE)
    sitter = Sitter(page)
    sitter.agree()
    sitter.await_pictures()
    sitter.finger(sitter.pictures.nth(2), sitter.places.nth(1))
    until(page, lambda: sitter.ranks == [None, None, 2, None])
    # a short touch that moves is a scroll, not a drag
    sitter.finger(sitter.pictures.nth(0), sitter.places.nth(0), hold=False)
    assert sitter.ranks == [None, None, 2, None]
    # out of its rank: taken back
    sitter.finger(page.locator(".thumb"), sitter.pictures.nth(3))
    until(page, lambda: sitter.ranks == [None] * 4)


def test_every_question_of_an_item_for_the_best(make_study, serve, open_page):
    dimensions = [
        {"name": name, "title": f"Title of {name}", "question": f"Which is best in {name}?"} for name in ("one", "two")
    ]
    study = make_study(
        answer="best", dimensions=dimensions, attention={"degraded": 0, "repeated": 0}, per_participant=2
    )
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    wanted = {"one": {}, "two": {}}
    for position in range(3):
        for number, dimension in enumerate(wanted):
            page.get_by_role("heading", name=f"Which is best in {dimension}?").wait_for()
            place = (position + number) % 4
            wanted[dimension][position] = [[place], [other for other in range(4) if other != place]]
            # first another one: the choice moves
            sitter.pictures.nth((place + 1) % 4).click()
            sitter.pictures.nth(place).click()
            go = page.locator(".tray .primary")
            if number:
                sitter.next()
            else:
                go.click()
    page.get_by_role("heading", name="Thank you").wait_for()
    for dimension, tiers in wanted.items():
        assert stored(study, dimension)[0] == tiers


def test_going_back_and_changing_an_answer(make_study, serve, open_page):
    study = make_study(per_participant=3)
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    for _ in range(3):
        sitter.by_keyboard([[0], [1], [2], [3]])
    assert sitter.heading == "Set 3 of 5"
    back = page.get_by_role("button", name="Back")

    with sitter.going_on():
        back.click()
    assert sitter.ranks == [1, 2, 3, 4]
    sitter.page.wait_for_timeout(450)  # a click at once would be the tail of a double click
    sitter.next()
    assert stored(study)[1][2] == 1, "nothing was changed, nothing is sent"

    with sitter.going_on():
        back.click()
    sitter.pictures.first.focus()
    sitter.press("2")  # no longer before the second picture, but beside it
    sitter.page.wait_for_timeout(450)
    sitter.next()
    assert sitter.heading == "Set 3 of 5"
    tiers, revisions = stored(study)
    assert (tiers[2], revisions[2]) == ([[0, 1], [2], [3]], 2)

    # a change is kept on the way back too, and an unfinished item comes back as it was left
    sitter.pictures.nth(3).click()
    with sitter.going_on():
        back.click()
    sitter.drag(sitter.pictures.nth(3), sitter.places.first)
    with sitter.going_on():
        back.click()
    assert sitter.heading == "Set 1 of 5"
    assert stored(study)[0][2] == [[0, 1, 3], [2]]
    for _ in range(2):
        sitter.page.wait_for_timeout(450)
        sitter.next()
    assert sitter.ranks == [None, None, None, 1]


def test_resuming_in_another_browser_by_the_link(make_study, serve, open_page):
    study = make_study(per_participant=3)
    server = serve(study)
    sitter = Sitter(open_page(server.url))
    sitter.agree()
    for _ in range(2):
        sitter.by_keyboard([[3], [2], [1], [0]])
    token = sitter.token()
    other = Sitter(open_page(f"{server.url}#p={token}", PHONE))
    other.page.locator("h1", has_text="Set 2 of 5").wait_for()
    assert token not in other.page.url
    other.by_tap([[0], [1], [2], [3]])
    # the first browser goes on from there as well: its answer is a revision, and it moves to where the study stands
    sitter.page.reload()
    sitter.page.locator("h1", has_text="Set 3 of 5").wait_for()
    assert stored(study)[0][2] == [[0], [1], [2], [3]]


def test_answers_outlive_a_dead_server_and_a_closed_tab(make_study, serve, open_page):
    study = make_study(per_participant=3)
    server = serve(study)
    page = open_page(server.url)
    sitter = Sitter(page)
    sitter.agree()
    sitter.by_keyboard([[0], [1], [2], [3]])

    server.stop()
    sitter.await_pictures()
    for picture in range(4):
        sitter.pictures.nth(picture).click()
    page.locator(".tray .primary").click()
    page.locator(".banner", has_text="Your answer is kept on this device").wait_for()
    assert sitter.heading == "Set 1 of 5"
    server.start()
    with sitter.going_on():
        page.get_by_role("button", name="Try now").click()
    assert sitter.heading == "Set 2 of 5" and not page.locator(".banner").is_visible()

    server.stop()
    for picture in (3, 2, 1, 0):
        sitter.pictures.nth(picture).click()
    page.locator(".tray .primary").click()
    page.locator(".banner", has_text="Your answer is kept on this device").wait_for()
    context = page.context
    page.close()
    server.start()
    again = open_page(server.url, context=context)
    again.locator("h1", has_text="Set 3 of 5").wait_for()
    tiers, revisions = stored(study)
    assert tiers[1] == [[0], [1], [2], [3]] and tiers[2] == [[3], [2], [1], [0]]
    assert set(revisions.values()) == {1}


def test_a_lost_acknowledgement_doubles_nothing(make_study, serve, open_page):
    study = make_study()
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    sitter.agree()
    bodies = []

    def lose_the_first(route):
        bodies.append(route.request.post_data_json)
        if len(bodies) == 1:
            route.fetch()  # the server has it, the page never hears
            route.abort()
        else:
            route.continue_()

    page.route("**/api/answer", lose_the_first)
    sitter.by_keyboard([[0], [1], [2], [3]])
    assert len(bodies) == 2 and bodies[0] == bodies[1]
    assert stored(study)[1] == {0: 1}


def test_double_clicks_count_once(make_study, serve, open_page):
    study = make_study()
    page = open_page(serve(study).url)
    sitter = Sitter(page)
    page.get_by_role("button", name="I agree").dblclick()
    page.locator("h1", has_text="Practice set").wait_for()
    for picture in range(4):
        sitter.pictures.nth(picture).dblclick()
    assert sitter.ranks == [1, 2, 3, 4]
    with sitter.going_on():
        page.locator(".tray .primary").dblclick()
    sitter.by_keyboard([[0], [1], [2], [3]])
    with sitter.going_on():
        page.get_by_role("button", name="Back").click()
    sitter.page.wait_for_timeout(450)
    sitter.pictures.first.focus()
    sitter.press("4")
    with sitter.going_on():
        page.locator(".tray .primary").dblclick()
    assert sitter.heading == "Set 2 of 6"
    assert stored(study)[1] == {0: 1, 1: 2}
    assert len(study.store.collected().participants) == 1


def test_the_code_is_copied_and_answers_can_be_seen_again(make_study, serve, open_page):
    study = make_study(per_participant=1, attention={"degraded": 0, "repeated": 0})
    address = "https://recruiter.example/done?cc={code}&who={external_id}"
    server = serve(study, entry="external_id", completion_url=address)
    page = open_page(f"{server.url}?PROLIFIC_PID=abc123&SESSION_ID=s1")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = _sit(page, "by_click", total=1)
    page.get_by_role("button", name="Copy code").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == code
    link = page.get_by_role("link", name="Return to recruiter.example")
    assert link.get_attribute("href") == f"https://recruiter.example/done?cc={code}&who=abc123"
    with Sitter(page).going_on():
        page.get_by_role("button", name="Look at my answers again").click()
    assert Sitter(page).heading == "Set 1 of 1" and None not in Sitter(page).ranks
    # another person on the same computer starts anew
    page.goto(f"{server.url}?PROLIFIC_PID=somebody-else&SESSION_ID=s2")
    page.get_by_role("button", name="I agree").wait_for()
