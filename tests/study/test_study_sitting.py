"""A participant's way through a study, over the HTTP interface."""

import pytest

from flowgrain.evaluate.protocol import Dimension
from flowgrain.evaluate.study.server import ServeConfig
from flowgrain.evaluate.study.store import Store

FAST = {"token_rate": 1000, "address_rate": 10_000, "entries_per_minute": 60_000}


@pytest.fixture
def study(make_study):
    return make_study()


@pytest.fixture
def anna(study, client_of, person):
    return person(client_of(study))


def test_a_whole_sitting(anna):
    state = anna.state()
    assert (state["step"], state["item"], state["position"]) == ("consent", None, 0)
    anna.consent()
    steps = []
    while (state := anna.state())["item"]:
        steps.append((state["step"], state["position"], state["item"]["position"], state["item"]["practice"]))
        assert anna.answer(state["item"]).status_code == 200
    total = 4 + 1 + 1
    assert steps == [("practice", 0, 0, True)] + [("items", n, n, False) for n in range(1, total + 1)]
    assert state["step"] == "done" and state["answered"] == state["total"] == total
    done = anna.get("/api/done").json()
    assert len(done["completion_code"]) == 9 and done["redirect_url"] is None


def test_nothing_before_consent(anna):
    assert anna.get("/api/items/0").json()["error"] == "wrong_step"
    assert anna.get("/api/done").json()["error"] == "wrong_step"
    body = {"item": "0" * 16, "answers": {}, "active_ms": 1, "client_answer_id": "a-new-answer"}
    assert anna.post("/api/answer", body).json()["error"] == "wrong_step"
    assert anna.state()["item"] is None


def test_consent_is_to_this_text_and_is_stored_with_its_time(anna, study):
    refused = anna.post("/api/consent", {"sha256": "0" * 64})
    assert (refused.status_code, refused.json()["error"]) == (409, "consent_changed")
    assert anna.consent().json() == {"accepted": True}
    assert anna.consent().status_code == 200
    (row,) = study.store.collected().participants
    assert row.consent_sha256 == study.config.consent_sha256 and row.consented_at >= row.created_at
    assert row.number == 0


def test_a_sitting_goes_on_elsewhere_with_the_same_token(study, client_of, person, anna):
    anna.finish(stop_after=3)
    elsewhere = person(client_of(study), token=anna.token)
    assert elsewhere.state() == anna.state()
    elsewhere.finish()
    assert anna.state()["step"] == "done"


def test_going_back_keeps_every_revision_and_the_last_one_counts(anna, study):
    anna.finish(stop_after=3)
    item = anna.get("/api/items/2").json()
    slots = [picture["slot"] for picture in item["pictures"]]
    assert item["previous_answer"] == {"overall": [[slot] for slot in slots]}
    again = anna.answer(item, [[3], [0, 1], [2]])
    assert again.json()["revision"] == 2
    shown = anna.get("/api/items/2").json()["previous_answer"]
    assert shown == {"overall": [[slots[3]], [slots[0], slots[1]], [slots[2]]]}
    assert anna.state()["position"] == 3
    contents = [row.content for row in study.store.collected().answers if row.position == 2]
    assert contents == ['{"overall":[[0],[1],[2],[3]]}', '{"overall":[[3],[0,1],[2]]}']


def test_items_that_were_not_reached_are_not_there(anna):
    anna.finish(stop_after=2)
    assert [anna.get(f"/api/items/{n}").status_code for n in (0, 1, 2, 3, 6, 7, -1)] == [200] * 3 + [404] * 4
    ahead = anna.get("/api/items/2").json()
    assert anna.answer(ahead).status_code == 200
    assert anna.get("/api/items/99999999999999999999").status_code == 404


def test_going_back_after_the_end(anna):
    anna.finish()
    assert anna.answer(anna.get("/api/items/1").json(), [[0, 1, 2, 3]]).json()["revision"] == 2
    assert anna.state()["step"] == "done"
    assert anna.get("/api/items/7").status_code == 404


def test_a_replay_is_acknowledged_alike_and_stored_once(anna, study):
    anna.finish(stop_after=1)
    item = anna.state()["item"]
    first = anna.answer(item, answer_id="the-same-answer")
    anna.answer(anna.state()["item"])
    again = anna.answer(item, answer_id="the-same-answer")
    assert again.status_code == 200 and again.json() == first.json()
    other = anna.answer(item, [[1], [0], [2], [3]], answer_id="the-same-answer")
    assert (other.status_code, other.json()["error"]) == (409, "answer_id_reused")
    assert sum(row.position == 1 for row in study.store.collected().answers) == 1


@pytest.mark.parametrize(
    "tiers", [[], [[0], [1], [2]], [[0], [1], [2], [3], [3]], [[0, 0], [1], [2], [3]], [[0], [], [1], [2], [3]]]
)
def test_incomplete_orders_are_refused(anna, tiers):
    anna.consent()
    answer = anna.answer(anna.state()["item"], tiers)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


def test_slots_of_another_item_are_refused(anna):
    anna.finish(stop_after=1)
    practice, item = anna.get("/api/items/0").json(), anna.state()["item"]
    assert anna.answer({**item, "pictures": practice["pictures"]}).status_code == 422


def test_choosing_the_best_on_several_dimensions(make_study, client_of, person):
    dimensions = tuple(Dimension(name=name, title=name, question="?") for name in ("overall", "looks"))
    study = make_study(answer="best", dimensions=dimensions)
    berta = person(client_of(study))
    berta.consent()
    state = berta.state()
    assert (state["answer"], state["ties"]) == ("best", False)
    assert [dimension["name"] for dimension in state["dimensions"]] == ["overall", "looks"]
    both = ("overall", "looks")
    assert berta.answer(state["item"], [[1], [0, 2, 3]], dimensions=("overall",)).status_code == 422
    assert berta.answer(state["item"], [[1], [0, 2, 3]], dimensions=(*both, "more")).status_code == 422
    assert berta.answer(state["item"], [[0], [1], [2], [3]], dimensions=both).status_code == 422
    assert berta.answer(state["item"], [[0, 1], [2, 3]], dimensions=both).status_code == 422
    assert berta.answer(state["item"], [[1], [0, 2, 3]], dimensions=both).status_code == 200


def test_without_ties_every_picture_needs_a_rank_of_its_own(make_study, client_of, person):
    carla = person(client_of(make_study(ties=False)))
    carla.consent()
    item = carla.state()["item"]
    assert carla.answer(item, [[0, 1], [2], [3]]).status_code == 422
    assert carla.answer(item).status_code == 200


def test_time_is_taken_by_the_server_and_bounds_what_the_page_says(study, client_of, person, monkeypatch):
    clock = [1_000_000]
    monkeypatch.setattr("flowgrain.evaluate.study.store.now", lambda: clock[0])
    dora = person(client_of(study))
    dora.consent()
    item = dora.state()["item"]
    clock[0] += 5000
    dora.state()  # reloading does not start the clock anew
    dora.answer(item, active_ms=86_400_000)
    clock[0] += 60_000
    back = dora.get("/api/items/0").json()
    clock[0] += 2000
    dora.answer(back, active_ms=1500)
    rows = [(row.revision, row.active_ms, row.elapsed_ms) for row in study.store.collected().answers]
    assert rows == [(1, 5000, 5000), (2, 1500, 2000)]


def test_withdrawing_deletes_everything_but_the_number(anna, study, client_of, person):
    anna.finish()
    assert anna.post("/api/withdraw", {"confirm": False}).status_code == 422
    answer = anna.post("/api/withdraw", {"confirm": True})
    assert answer.json()["withdrawn"] is True and "running number" in answer.json()["kept"]
    assert anna.get("/api/state").status_code == 401
    collected = study.store.collected()
    assert not collected.answers and not collected.views
    (row,) = collected.participants
    kept = {key for key, value in row._mapping.items() if value is not None}
    assert kept == {"id", "name", "number", "created_at", "withdrawn_at"}
    berta = person(client_of(study))
    berta.consent()
    assert [row.number for row in study.store.collected().participants] == [0, 1]


def test_places_end(make_study, client_of, person):
    client = client_of(make_study(participants=2))
    people = [person(client) for _ in range(3)]
    assert [who.consent().status_code for who in people] == [200, 200, 403]
    assert client.get("/api/study").json()["full"] is True
    refused = client.post("/api/enter", json={})
    assert (refused.status_code, refused.json()["error"]) == (403, "full")
    assert people[0].state()["step"] == "practice"


def test_entries_without_consent_are_bounded(make_study, client_of):
    client = client_of(make_study(participants=1))
    statuses = [client.post("/api/enter", json={}).status_code for _ in range(12)]
    assert statuses == [201] * 10 + [403] * 2


def test_closed(anna, study, client_of, person):
    client = client_of(study)
    berta, carla = person(client), person(client)
    anna.finish()
    berta.finish(stop_after=2)
    stored = berta.state()["item"]
    first = berta.answer(stored, answer_id="before-the-close")
    next_item = berta.state()["item"]
    assert study.store.close() and not study.store.close()
    assert client.get("/api/study").json()["closed"] is True
    for answer in (berta.get("/api/state"), berta.get("/api/items/1"), berta.answer(next_item), carla.get("/api/state"),
                   client.post("/api/enter", json={})):  # fmt: skip
        assert (answer.status_code, answer.json()["error"]) == (410, "closed")
    assert carla.post("/api/consent", {"sha256": study.config.consent_sha256}).status_code == 410
    assert berta.answer(stored, answer_id="before-the-close").json() == first.json()
    assert anna.get("/api/done").status_code == 200
    assert berta.post("/api/withdraw", {"confirm": True}).status_code == 200


def test_links(study, client_of, person):
    client = client_of(study, ServeConfig(entry="links", **FAST))
    assert client.get("/api/study").json()["entry"] == "links"
    for body in ({}, {"external_id": "abc"}):
        refused = client.post("/api/enter", json=body)
        assert (refused.status_code, refused.json()["error"]) == (403, "not_open")
    first, second = study.store.invite(2)
    assert person(client, token=first).state()["step"] == "consent" and first != second


def test_ids_of_a_recruiting_service(study, client_of, person):
    url = "https://recruit.example/done?code={code}&who={external_id}"
    client = client_of(study, ServeConfig(entry="external_id", completion_url=url, **FAST))
    names = {"parameter": "PROLIFIC_PID", "session_parameter": "SESSION_ID"}
    assert client.get("/api/study").json()["external_id"] == names
    assert client.post("/api/enter", json={}).json()["error"] == "not_open"
    ids = {"external_id": "5f1e", "session_id": "60aa"}
    anna = person(client, enter=ids)
    anna.finish(stop_after=2)
    again = person(client, enter=ids)
    assert again.token != anna.token and again.state() == anna.state()
    again.finish()
    code = again.get("/api/done").json()["completion_code"]
    expected = f"https://recruit.example/done?code={code}&who=5f1e"
    assert anna.get("/api/done").json() == {"completion_code": code, "redirect_url": expected}
    assert len(study.store.collected().participants) == 1


@pytest.mark.parametrize("session", [None, "another"])
def test_an_id_alone_opens_nobody_elses_sitting(study, client_of, person, session):
    client = client_of(study, ServeConfig(entry="external_id", **FAST))
    person(client, enter={"external_id": "5f1e", "session_id": "60aa"})
    refused = client.post("/api/enter", json={"external_id": "5f1e", "session_id": session})
    assert (refused.status_code, refused.json()["error"]) == (403, "already_started")
    person(client, enter={"external_id": "77", "session_id": None})
    assert client.post("/api/enter", json={"external_id": "77", "session_id": None}).status_code == 403


def test_a_token_expires(study, client_of, person):
    expiring = Store(study.store.engine, 30, token_days=-1.0)
    anna = person(client_of(study), token=expiring.enter())
    assert anna.get("/api/state").status_code == 401


def test_every_participant_has_the_own_assignment(study, client_of, person):
    client = client_of(study)
    people = [person(client) for _ in range(4)]
    shown = []
    for who in people:
        who.finish()
        items = [who.get(f"/api/items/{n}").json() for n in range(1, 7)]
        shown.append([[picture["url"] for picture in item["pictures"]] for item in items])
    assert len({str(pictures) for pictures in shown}) == 4
    # every picture of an item at every place, over four participants and four variants
    urls = {f"media/{picture.name}" for item in study.plan.items for picture in item.pictures}
    places = {(url, place) for pictures in shown for item in pictures for place, url in enumerate(item) if url in urls}
    assert len(places) == len(urls) * 4


def test_pictures_of_the_next_item_are_named_ahead(anna):
    anna.finish(stop_after=1)
    ahead = anna.state()["item"]["preload"]
    anna.answer(anna.state()["item"])
    item = anna.state()["item"]
    assert ahead == [picture["url"] for picture in (*item["references"], *item["pictures"])]
    assert len(item["references"]) == 3 and item["dataset"] == "squares on white"
