"""What an attacker tries: other participants, other files, the names of the variants, script, floods."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from starlette.testclient import TestClient

from flowgrain.evaluate.study.limits import HEADERS, MOST_BODY_BYTES, TokenBucket
from flowgrain.evaluate.study.server import WEB, ServeConfig, build_app

ARMS = ("zebra-arm", "quokka-arm", "walrus-arm", "ocelot-arm")
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
QUICK = {"token_rate": 1000, "address_rate": 10_000, "entries_per_minute": 60_000}


@pytest.fixture
def study(make_study):
    return make_study()


@pytest.fixture
def client(study, client_of):
    return client_of(study)


@pytest.fixture(scope="module")
def shared_client(shared_study):
    with TestClient(build_app(shared_study, ServeConfig(**QUICK)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def served(shared_study):
    """Address of a real server on 127.0.0.1, for what a test client would tidy up before sending."""
    config = uvicorn.Config(build_app(shared_study, ServeConfig(**QUICK)), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()
    server.should_exit = True
    thread.join(timeout=10)
    listening.close()


def send_raw(address, text):
    """Status and body of a request that is sent byte for byte."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(text)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def get_raw(address, path):
    return send_raw(address, b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "x",
        "A" * 32,
        "A" * 31,
        "A" * 33,
        "A" * 100_000,
        "' OR '1'='1' -- aaaaaaaaaaaaaaaaaa",
        "\x00" * 32,
        "é" * 32,
    ],
)
def test_forged_and_malformed_tokens(shared_client, token):
    client = shared_client
    for header in ("Authorization", "X-Study-Token"):
        value = f"Bearer {token}" if header == "Authorization" else token
        headers = {} if token is None else {header: value.encode()}
        for method, path in (("GET", "/api/state"), ("GET", "/api/items/0"), ("GET", "/api/done")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "bad_token")
        body = {"item": "0" * 16, "answers": {}, "active_ms": 0, "client_answer_id": "aaaaaaaa"}
        assert client.post("/api/answer", json=body, headers=headers).status_code == 401
        assert client.post("/api/withdraw", json={"confirm": True}, headers=headers).status_code == 401


def test_every_prefix_and_neighbour_of_a_token_is_refused(shared_client, person):
    client = shared_client
    anna = person(client)
    for forged in (anna.token[:-1], anna.token + "A", anna.token.swapcase(), anna.token[::-1]):
        assert client.get("/api/state", headers={"X-Study-Token": forged}).status_code == 401
    assert client.get("/api/state", headers={"X-Study-Token": anna.token}).status_code == 200


def test_tokens_are_not_in_the_database(study, client, person):
    anna = person(client)
    anna.consent()
    study.store.engine.dispose()
    stored = b"".join(path.read_bytes() for path in study.folder.glob("study.db*"))
    assert anna.token.encode() not in stored and len(stored) > 0


def test_the_database_is_for_its_owner_alone(study):
    assert (study.folder / "study.db").stat().st_mode & 0o077 == 0


def test_nobody_reads_or_writes_another_ones_answers(study, client, person):
    anna, berta = person(client), person(client)
    anna.finish()
    anna.answer(anna.get("/api/items/2").json(), answer_id="annas-own-answer-id")
    berta.finish(stop_after=3)
    before = [tuple(row) for row in study.store.collected().answers if row.participant == 1]
    item = anna.get("/api/items/2").json()
    stolen = berta.answer(item, [[3], [2], [1], [0]])
    assert (stolen.status_code, stolen.json()["error"]) == (404, "not_found")
    # anna's slots in berta's item, and anna's answer id, are berta's business alone
    own = berta.get("/api/items/2").json()
    assert berta.answer({**own, "pictures": item["pictures"]}).status_code == 422
    assert berta.answer(own, answer_id="annas-own-answer-id").status_code == 200
    assert [tuple(row) for row in study.store.collected().answers if row.participant == 1] == before
    theirs = {anna.get(f"/api/items/{n}").json()["key"] for n in range(7)}
    assert not theirs & {berta.get(f"/api/items/{n}").json()["key"] for n in range(3)}
    assert berta.get("/api/done").status_code == 409


TRAVERSALS = [
    b"../study.yaml", b"..%2fkey.json", b"%2e%2e/key.json", b"%2e%2e%2fkey.json", b"..%5ckey.json", b"....//key.json",
    b"%252e%252e%252fkey.json", b"..%c0%afkey.json", b"/etc/passwd", b"%2fetc%2fpasswd", b"..%00.png", b".", b"..", b"",
    b"key.json", b"../../../../../../../etc/passwd", b"%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd", b"./index.html",
    b"../templates/index.html", b"..%2ftemplates%2findex.html", b"C:%5cwindows", b"file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("folder", [b"media", b"static", b"api/items"])
def test_paths_lead_nowhere_else(served, folder):
    for attempt in TRAVERSALS:
        status, body = get_raw(served, b"/" + folder + b"/" + attempt)
        assert status in (401, 404), attempt
        assert b"root:" not in body and b"nonce" not in body and b"{{" not in body
        assert set(json.loads(body)) == {"error", "message"}


@pytest.mark.parametrize(
    "path", [b"/key.json", b"/plan.json", b"/study.yaml", b"/SEALED", b"/study.db", b"/media", b"/media/", b"/static/",
             b"/docs", b"/redoc", b"/openapi.json", b"/admin", b"/results", b"/api", b"/api/", b"/api/results",
             b"/.git/config", b"//", b"/%2e%2e/key.json", b"/index.html"]
)  # fmt: skip
def test_nothing_else_is_served(served, path):
    status, body = get_raw(served, path)
    assert status == 404 and json.loads(body)["error"] == "not_found"


def test_pictures_of_another_study_are_not_served(make_study, client_of):
    mine, other = make_study(), make_study()
    client = client_of(mine)
    assert client.get(f"/media/{mine.plan.pictures[0].name}").status_code == 200
    assert client.get(f"/media/{other.plan.pictures[0].name}").status_code == 404


def test_the_other_studys_tokens_do_not_work_here(make_study, client_of, person):
    mine, other = make_study(), make_study()
    anna = person(client_of(mine))
    assert client_of(other).get("/api/state", headers=anna.headers).status_code == 401


def responses(client, person):
    """Everything that the server can be made to say, with a participant and without."""
    anna, berta = person(client), person(client)
    yield client.get("/")
    yield client.get("/api/study")
    for name in sorted(path.name for path in (WEB / "static").iterdir()):
        yield client.get(f"/static/{name}")
    yield anna.get("/api/state")
    yield anna.post("/api/consent", {"sha256": "0" * 64})
    yield anna.consent()
    for _ in range(7):
        state = anna.get("/api/state")
        yield state
        item = state.json()["item"]
        for picture in (*item["references"], *item["pictures"]):
            yield client.get("/" + picture["url"])
        yield anna.answer({**item, "pictures": item["pictures"][1:]})
        yield anna.answer(item)
    yield anna.get("/api/state")
    for position in range(8):
        yield anna.get(f"/api/items/{position}")
    yield anna.get("/api/done")
    yield berta.get("/api/done")
    yield client.post("/api/enter", json={"external_id": "x"})
    yield client.post("/api/enter", content=b"{", headers={"content-type": "application/json"})
    yield client.request("DELETE", "/api/state")
    yield client.get("/api/state")
    yield client.get("/missing")
    yield client.post("/api/answer", content=b"x" * (MOST_BODY_BYTES + 1), headers={"content-type": "application/json"})
    yield anna.post("/api/withdraw", {"confirm": True})


def test_no_answer_names_or_numbers_a_variant_and_all_carry_the_headers(study, client, person):
    comparison_keys = {item.key for item in study.plan.items}
    seen = 0
    for answer in responses(client, person):
        everything = answer.content + json.dumps(dict(answer.headers)).encode() + str(answer.url).encode()
        for arm in ARMS:
            assert arm.encode() not in everything
        assert not any(key.encode() in everything for key in comparison_keys)
        assert str(study.folder).encode() not in everything and study.plan.seed.encode() not in everything
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert "etag" not in answer.headers and "last-modified" not in answer.headers
        assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers
        cached = answer.headers["cache-control"]
        assert cached == "no-store" or answer.request.url.path.startswith(("/media/", "/static/"))
        seen += 1
    assert seen > 90


def test_the_page_and_its_files_ask_nobody_else():
    for path in [*(WEB / "static").iterdir(), *(WEB / "templates").iterdir()]:
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text().replace("http://www.w3.org/", "")
            assert "http://" not in text and "https://" not in text and "//cdn" not in text, path.name


def test_script_in_texts_is_inert(make_study, client_of, person):
    settings = {"comparison": {"prompts": (SCRIPT, "b"), "datasets": (f"x{SCRIPT[:8].strip('</>')}",)}}
    client = client_of(make_study(title=SCRIPT, consent=SCRIPT, **settings))
    page = client.get("/")
    assert SCRIPT not in page.text and "<script>alert" not in page.text and "&lt;/script&gt;" in page.text
    anna = person(client)
    state = anna.get("/api/state")
    assert state.headers["content-type"] == "application/json" and state.json()["consent"]["text"] == SCRIPT
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy


def test_the_page_keeps_its_own_policy():
    """No inline script or style, which the policy would block."""
    text = (WEB / "templates" / "index.html").read_text()
    assert "style=" not in text and "<style" not in text and "onclick" not in text and "javascript:" not in text


def test_oversized_bodies(shared_client, person, served):
    client = shared_client
    anna = person(client)
    big = b'{"external_id": "' + b"x" * MOST_BODY_BYTES + b'"}'
    for path in ("/api/enter", "/api/answer", "/nowhere"):
        answer = client.post(path, content=big, headers={**anna.headers, "content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    # a length that is not told is counted while it streams: the server answers before the end
    head = b"POST /api/enter HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 17
    assert send_raw(served, head + chunks)[0] == 413
    assert send_raw(served, head + b"Content-Length: 99999999999999999999999\r\n\r\n")[0] in (400, 413)


def test_slow_bodies(served, monkeypatch):
    monkeypatch.setattr("flowgrain.evaluate.study.limits.MOST_BODY_SECONDS", 0.2)
    head = b"POST /api/enter HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    assert send_raw(served, head + b"Content-Length: 10\r\n\r\n{")[0] == 408


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b'{"external_id": 5}', 422),
        (b'{"external_id": "a b"}', 422),
        (b'{"external_id": "' + b"x" * 65 + b'"}', 422),
        (b'{"more": 1}', 422),
        (b'{"external_id": "\\u0000"}', 422),
        (b'{"external_id": NaN}', 422),
    ],
)
def test_bodies_that_are_not_what_is_asked_for(shared_client, body, status):
    answer = shared_client.post("/api/enter", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "message"} and "external_id" not in answer.text


@pytest.mark.parametrize(
    "change",
    [
        {"active_ms": -1}, {"active_ms": 86_400_001}, {"active_ms": "5"}, {"active_ms": 1.5}, {"active_ms": None},
        {"client_answer_id": "short"}, {"client_answer_id": "x" * 65}, {"client_answer_id": "a b c d e f"},
        {"client_answer_id": "aaaaaaaa\u0000"}, {"item": "../../etc/passwd"}, {"answers": []},
        {"answers": {"overall": {}}},
        {"answers": {"overall": [["0000000000"] * 5000]}}, {"answers": {"x" * 100: []}}, {"variant": "zebra-arm"},
    ],
)  # fmt: skip
def test_answers_that_are_not_answers(shared_client, person, change):
    anna = person(shared_client)
    anna.consent()
    item = anna.state()["item"]
    good = {
        "item": item["key"],
        "answers": {"overall": [[picture["slot"]] for picture in item["pictures"]]},
        "active_ms": 5,
        "client_answer_id": "a-good-one",
    }
    answer = anna.post("/api/answer", {**good, **change})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert anna.state()["position"] == 0
    assert anna.post("/api/answer", good).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_another_sites_form_could_send_is_refused(shared_client, kind):
    """A page elsewhere can post these without asking first; JSON it cannot, as no CORS header allows it."""
    headers = {"content-type": kind, "origin": "https://evil.example"}
    answer = shared_client.post("/api/enter", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "unsupported")
    asked = shared_client.options(
        "/api/enter", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert asked.status_code == 405 and not any(name.startswith("access-control") for name in asked.headers)


def test_floods_with_a_token(study, client_of, person):
    client = client_of(study, ServeConfig(token_rate=1.0, address_rate=10_000.0))
    anna, berta = person(client), person(client)
    statuses = [anna.get("/api/state").status_code for _ in range(10)]
    assert statuses[:6] == [200] * 6 and statuses[-1] == 429
    refused = anna.get("/api/state")
    assert refused.json()["error"] == "too_many_requests" and int(refused.headers["retry-after"]) >= 1
    assert berta.get("/api/state").status_code == 200


def test_floods_with_forged_tokens_and_of_entries(study, client_of):
    client = client_of(study, ServeConfig(address_rate=2.0, entries_per_minute=3.0))
    entries = [client.post("/api/enter", json={}).status_code for _ in range(5)]
    assert entries == [201] * 3 + [429] * 2
    forged = [client.get("/api/state", headers={"X-Study-Token": f"{n:032}"}).status_code for n in range(30)]
    assert forged[0] == 401 and forged[-1] == 429
    assert client.get("/").status_code == 200  # the page has a limit of its own


def test_a_bucket_fills_again_and_forgets_old_keys(monkeypatch):
    monkeypatch.setattr("flowgrain.evaluate.study.limits.MOST_KEYS", 2)
    bucket = TokenBucket(2.0, 2.0)
    assert [bucket.wait("a", 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert bucket.wait("a", 0.5) == 0 and bucket.wait("a", 0.5) == 0.5
    bucket.wait("b", 0.5), bucket.wait("c", 0.5)
    assert len(bucket._levels) == 2 and "a" not in bucket._levels


def test_behind_a_proxy_path(study, client_of, person):
    client = client_of(study, ServeConfig(root_path="/lab/study", **QUICK))
    bare = client.get("/lab/study", follow_redirects=False)
    assert (bare.status_code, bare.headers["location"]) == (307, "/lab/study/")
    stripped, whole = client.get("/"), client.get("/lab/study/")
    assert stripped.text == whole.text and whole.status_code == 200
    token = client.post("/lab/study/api/enter", json={}).json()["token"]
    assert client.get("/lab/study/api/state", headers={"X-Study-Token": token}).status_code == 200
    assert client.get("/lab/study/media/../key.json").status_code == 404
    assert client.get("/lab/studyx/").status_code == 404
    assert client.post("/lab/study/api/enter", content=b"x" * 70_000).status_code == 413


def test_the_prefix_does_not_lead_around_the_limits(study, client_of):
    client = client_of(study, ServeConfig(root_path="/s", entries_per_minute=1.0))
    statuses = [client.post(path, json={}).status_code for path in ("/s/api/enter", "/api/enter", "/s/api/enter")]
    assert statuses == [201, 429, 429]


def test_forwarded_addresses_are_not_believed(study, client_of):
    client = client_of(study, ServeConfig(entries_per_minute=1.0))
    statuses = [
        client.post("/api/enter", json={}, headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code for n in range(3)
    ]
    assert statuses == [201, 429, 429]


def test_ipv6_neighbours_share_a_limit(study):
    app = build_app(study, ServeConfig(entries_per_minute=1.0))
    statuses = [
        TestClient(app, client=(address, 1)).post("/api/enter", json={}).status_code
        for address in ("2001:db8::1", "2001:db8::2", "2001:db9::1", "no address")
    ]
    assert statuses == [201, 429, 201, 201]
