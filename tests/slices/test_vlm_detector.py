"""Boxes of a model come back in source pixels, whatever its convention; what is no answer is no box, and told."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import TypeAdapter, ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "vlm"))  # the fake endpoint

from fake_endpoint import Fail, FakeEndpoint, Hang, Say
from seeing import COLOURS, see

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import ConfigError
from flowgrain.slices.detectors import DetectorContext, View
from flowgrain.slices.detectors.registry import OneDetector
from flowgrain.slices.detectors.vlm import VlmDetectorConfig
from flowgrain.slices.detectors.vlm_boxes import STYLES, read_boxes
from flowgrain.vlm.answers import AnswerError
from flowgrain.vlm.failures import BudgetError, EndpointError
from flowgrain.vlm.settings import VlmConfig, decisive
from flowgrain.vlm.store import STORE_NAME

KEY = "sk-a-secret-that-nobody-may-see"
FOX = Item(Folder(Path("photos")), "fox.png")
RED = {"label": "red", "box": [100, 200, 300, 400], "score": 0.5}


def picture(size=(900, 600), **boxes):
    """Grey, with a rectangle (x0, y0, x1, y1) of each named colour."""
    image = Image.new("RGB", size, (128, 128, 128))
    for name, (x0, y0, x1, y1) in boxes.items():
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[name])
    return image


def view(image, region=None):
    return View(image, tuple(map(float, region or (0, 0, *image.size))), FOX)


def boxes(*entries):
    return Say(json.dumps({"boxes": list(entries)}))


@pytest.fixture
def make(tmp_path):
    """(url, settings) -> detector whose answers are kept in one folder; endpoint's settings under ``endpoint``."""
    made = []

    def build(url, endpoint=None, cache=tmp_path / "vlm", **settings):
        settings["endpoint"] = {"model": "fake", "base_url": url, "first_wait": 0.0, **(endpoint or {})}
        config = VlmDetectorConfig(**{"find": "a coloured thing", **settings})
        detector = config.build(DetectorContext(Path("photos"), "meso", 1, cache=cache))
        made.append(detector)
        return detector

    yield build
    for detector in made:
        detector.asker.close()


WIDE, TALL = ((2000, 1100), (411, 100, 1911, 1050)), ((333, 1500), (30, 300, 303, 1200))


@pytest.mark.parametrize(
    ("style", "size", "region"),
    [*((style, (900, 600), None) for style in STYLES)]
    + [(style, *place) for style in ("pixels", "gemini", "qwen2.5-vl") for place in (WIDE, TALL)],
)
def test_boxes_come_back_in_source_pixels(style, size, region, make):
    x0, y0, x1, y1 = region or (0, 0, *size)
    width, height = x1 - x0, y1 - y0
    red = (x0 + width // 5, y0 + height // 10, x0 + width // 2, y0 + height // 3)
    blue = (x0 + width // 2, y0 + height // 2, x1 - width // 7, y1)
    with FakeEndpoint(see) as endpoint:
        detector = make(endpoint.url, coordinates=style, pictures={"max_side": 512})
        found = detector.detect(view(picture(size, red=red, blue=blue), region))
        (sent,) = endpoint.calls[0].pictures
    assert {f.label: f.score for f in found} == {"red": 0.75, "blue": 0.75}
    assert max(sent.size) <= 512 and abs(sent.width / sent.height / (width / height) - 1) < 0.1
    if style == "qwen2.5-vl":
        assert not sent.width % 28 and not sent.height % 28
    pixel = max(width / sent.width, height / sent.height)
    for detection, expected in zip(found, (red, blue), strict=True):
        rounding = max(width, height) / 1000 if STYLES[style].unit == "thousandths" else 0
        assert max(abs(a - b) for a, b in zip(detection.box, expected, strict=True)) <= pixel + rounding


def test_small_regions_are_sent_as_they_are_and_nothing_else_is_sent(make):
    image = picture((700, 500), red=(10, 10, 30, 30), green=(300, 200, 350, 260))
    image.info["comment"] = "secret"
    with FakeEndpoint(see) as endpoint:
        detector = make(endpoint.url, coordinates="pixels", pictures={"format": "png"})
        (found,) = detector.detect(view(image, (250, 150, 450, 350)))
        call = endpoint.calls[0]
        (sent,) = call.pictures
    assert sent.size == (200, 200) and list(sent.getdata()) == list(image.crop((250, 150, 450, 350)).getdata())
    assert found.box == (300, 200, 350, 260) and found.label == "green"
    assert "a coloured thing" in call.text and "fox" not in json.dumps(call.body) and "secret" not in str(sent.info)
    assert call.schema["json_schema"]["schema"]["required"] == ["boxes"]


@pytest.mark.parametrize(
    "text",
    [
        'Sure! ```json\n{"boxes": [%s]}\n``` Hope [this] helps {a lot}.',
        "```json\n[%s]\n```",
        '<think>[{"box": [1, 2, 3, 4]}]</think>{"boxes": [%s]}',
        '{"reason": "clear", "boxes": [%s]}',
    ],
)
def test_fences_prose_and_bare_lists_are_read(text, make):
    with FakeEndpoint(lambda call: Say(text % json.dumps(RED))) as endpoint:
        found = make(endpoint.url).detect(view(picture((1000, 1000))))
    assert [f.box for f in found] == [(100, 200, 300, 400)] and len(endpoint.calls) == 1


@pytest.mark.parametrize("text", ['{"boxes": []}', "[]", "```\n[]\n```"])
def test_nothing_found_is_an_answer(text, make):
    with FakeEndpoint(lambda call: Say(text)) as endpoint:
        detector = make(endpoint.url)
        assert detector.detect(view(picture())) == [] and len(endpoint.calls) == 1
    assert detector.asker.take_unanswered() == [] and detector.asker.spending.failed == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            RED | {"box": [100, 200, 300, 1400]},
            r"box 1 \[100, 200, 300, 1400\] reaches outside of the picture: 1400 is",
        ),
        (RED | {"box": [-100, 200, 300, 400]}, "reaches outside"),
        (RED | {"box": [300, 200, 100, 400]}, "is empty: x0 < x1 and y0 < y1 must hold"),
        (RED | {"box": [300, 200, 300, 400]}, "is empty"),
        (RED | {"box": [0.1, 0.2, 0.3, 0.4]}, "looks like fractions"),
        (RED | {"box": [1, 2, 3]}, "not a list of four numbers"),
        (RED | {"box": [1, 2, 3, "4"]}, "not a list of four numbers"),
        (RED | {"box": [1, 2, 3, True]}, "not a list of four numbers"),
        (RED | {"score": 75}, '"score" must be a number from 0 to 1'),
        (RED | {"label": 7}, '"label" is no text'),
        ({"label": "red", "bbox_2d": [1, 2, 3, 4]}, 'box 1 lacks "box"'),
    ],
)
def test_what_is_wrong_with_a_box_is_told_and_the_model_gets_another_chance(wrong, says, make):
    def behave(call):
        return boxes(RED) if call.is_repair else boxes(wrong)

    with pytest.raises(AnswerError, match=says):
        read_boxes(json.dumps({"boxes": [wrong]}), STYLES["thousandths"], (10, 10), "x", False)
    with FakeEndpoint(behave) as endpoint:
        detector = make(endpoint.url)
        assert [f.box for f in detector.detect(view(picture((1000, 1000))))] == [(100, 200, 300, 400)]
    assert len(endpoint.calls) == 2 and "cannot be used: box 1" in endpoint.calls[1].messages[-1]["content"]
    assert detector.asker.take_unanswered() == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["boxes", "box", "label", "x"]), inner),
    max_leaves=15,
)


@given(
    st.text(max_size=100) | json_values.map(json.dumps) | json_values.map(lambda value: json.dumps({"boxes": value}))
)
def test_reading_boxes_never_fails_in_another_way(text):
    try:
        found = read_boxes(text, STYLES["fractions"], (10, 10), "x", True)["boxes"]
    except AnswerError:
        return
    for entry in found:
        x0, y0, x1, y1 = entry["box"]
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0 <= entry["score"] <= 1 and entry["label"]


@given(
    style=st.sampled_from(sorted(STYLES)),
    size=st.tuples(st.integers(28, 4000), st.integers(28, 4000)),
    corners=st.tuples(*[st.integers(0, 999)] * 4).filter(lambda c: abs(c[0] - c[2]) > 100 and abs(c[1] - c[3]) > 100),
)
def test_what_a_model_writes_in_any_convention_is_read_as_what_it_saw(style, size, corners):
    coordinates = STYLES[style]
    sent = coordinates.sent_size(size, 1024)
    assert max(sent) <= 1024 and all(side % coordinates.multiple == 0 and side > 0 for side in sent)
    across, down = coordinates.limits(sent)
    x0, x1 = sorted((corners[0] / 1000, corners[2] / 1000))
    y0, y1 = sorted((corners[1] / 1000, corners[3] / 1000))
    written = [x0 * across, y0 * down, x1 * across, y1 * down]
    if coordinates.unit != "fractions":
        written = [round(number) for number in written]
        assume(written[0] < written[2] and written[1] < written[3] and max(written) > 1)
    if coordinates.down_first:
        written = [written[1], written[0], written[3], written[2]]
    text = json.dumps({"boxes": [{"label": "a", coordinates.name: written}]})
    (entry,) = read_boxes(text, coordinates, sent, "x", False)["boxes"]
    half = {"fractions": 0.0, "thousandths": 0.5 / 1000, "pixels": 0.5 / min(sent)}[coordinates.unit]
    assert max(abs(a - b) for a, b in zip(entry["box"], (x0, y0, x1, y1), strict=True)) <= half + 1e-9


@pytest.mark.parametrize(
    "text", ['{"boxes": [{"label": "a", "box": [1, 2, 3', '{"boxes": 3}', '{"boxes": [3]}', "none"]
)
def test_truncated_and_foreign_answers_are_refused(text):
    with pytest.raises(AnswerError):
        read_boxes(text, STYLES["thousandths"], (10, 10), "x", False)


def test_a_hair_outside_is_clipped_and_scores_follow_the_order_where_none_are_given():
    text = json.dumps({"boxes": [{"box": [-5, 0, 1009, 500]}, {"box": [0, 0, 10, 10], "label": " a \n b "}]})
    first, second = read_boxes(text, STYLES["thousandths"], (10, 10), "the logo", False)["boxes"]
    assert first == {"box": [0.0, 0.0, 1.0, 0.5], "label": "the logo", "score": 1.0, "caption": None}
    assert second["label"] == "a b" and 0.5 <= second["score"] < 1.0
    many = json.dumps({"boxes": [{"box": [0, 0, 10, 10]}] * 200})
    scores = [entry["score"] for entry in read_boxes(many, STYLES["thousandths"], (10, 10), "x", False)["boxes"]]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= 0.5


def test_captions_come_with_boxes_where_they_are_asked_for(make):
    with FakeEndpoint(lambda call: boxes(RED | {"caption": "a red\nthing"})) as endpoint:
        assert make(endpoint.url).detect(view(picture()))[0].caption is None
        assert make(endpoint.url, captions=True).detect(view(picture()))[0].caption == "a red thing"
        assert ["caption" in json.dumps(call.schema) for call in endpoint.calls] == [False, True]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Say(None, refusal="I cannot look at people"), "vlm_refused"),
        (Say("I would rather not"), "vlm_unusable"),
        (Say('{"boxes": [', finish="length"), "vlm_unusable"),
        (Fail(413, "picture too large"), "vlm_rejected"),
    ],
)
def test_without_a_usable_answer_there_are_no_boxes_and_the_reason_is_told_again_from_the_store(answer, code, make):
    def behave(call):
        return see(call) if call.pictures[0].getpixel((0, 0)) == (128, 128, 128) else answer

    odd = picture(red=(0, 0, 900, 600))
    with FakeEndpoint(behave) as endpoint:
        for asked in (True, False):
            detector = make(endpoint.url, asking={"repairs": 1})
            before = len(endpoint.calls)
            good, bad = detector.detect_all([view(picture(red=(10, 10, 400, 400))), view(odd)])
            assert len(good) == 1 and bad == [] and bool(len(endpoint.calls) - before) == asked
            (told,) = detector.asker.take_unanswered()
            assert (told.name, told.code, told.final) == ("fox.png", code, True) and told.reason
            assert detector.asker.take_unanswered() == [] and detector.asker.spending.failed == 1
            assert detector.asker.spending.cached == (0 if asked else 2)
            detector.asker.close()


def test_an_endpoint_that_fails_one_picture_is_asked_again_another_time(make):
    def behave(call):
        return Fail(500) if poisoned and call.pictures[0].size == (30, 30) else see(call)

    poisoned = True
    both = [view(picture(red=(10, 10, 400, 400))), view(picture((30, 30), red=(5, 5, 20, 20)))]
    with FakeEndpoint(behave) as endpoint:
        detector = make(endpoint.url, {"attempts": 2})
        assert [len(found) for found in detector.detect_all(both)] == [1, 0]
        (told,) = detector.asker.take_unanswered()
        assert told.code == "vlm_unreachable" and not told.final and "500" in told.reason
        poisoned = False
        assert [len(found) for found in detector.detect_all(both)] == [1, 1]
        assert len(endpoint.calls) == 4


def test_what_may_pass_is_tried_again(make):
    troubles = [Fail(429, headers={"retry-after": "0.2"}), Fail(500), Hang(3.0), Say('{"boxes": [{"la'), Say("[1, 2")]
    with FakeEndpoint(lambda call: troubles[call.number] if call.number < 5 else see(call)) as endpoint:
        detector = make(endpoint.url, {"timeout": 1.0}, budget={"price_in": 1.0, "price_out": 1.0})
        assert len(detector.detect(view(picture(red=(10, 10, 400, 400))))) == 1
    spending = detector.asker.spending
    assert (spending.questions, spending.requests, spending.failed, spending.estimated) == (1, 6, 0, True)
    assert spending.tokens_in > 300 and spending.cost == pytest.approx((spending.tokens_in + spending.tokens_out) / 1e6)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Fail(401), "refuses a request without a key"),
        (Fail(404), "no chat completions"),
        (Say("?"), "3 questions in a row"),
    ],
)
def test_an_endpoint_that_cannot_be_used_stops_the_run_and_keeps_what_was_answered(answer, says, make):
    views = [view(picture((100 + side, 100), red=(10, 10, 90, 90))) for side in range(12)]
    with FakeEndpoint(lambda call: see(call) if call.number < 2 else answer) as endpoint:
        detector = make(endpoint.url, asking={"repairs": 0, "give_up_after": 3, "concurrency": 1})
        with pytest.raises(EndpointError, match=says) as caught:
            for start in range(0, 12, 2):  # failures in a row are counted over batches
                detector.detect_all(views[start : start + 2])
        assert "\n" not in str(caught.value) and len(endpoint.calls) < 8
        detector.asker.close()
        endpoint.behave = see
        before = len(endpoint.calls)
        found = make(endpoint.url, retry_failed=True).detect_all(views)
        assert all(map(len, found)) and len(endpoint.calls) - before == 10


def test_an_unknown_host_and_a_dead_server_are_one_clear_line(make):
    with pytest.raises(EndpointError, match=r"its host cannot be found \("):
        make("http://no-such-host.invalid/v1").detect(view(picture()))
    with FakeEndpoint(see) as endpoint:
        pass
    with pytest.raises(EndpointError, match="cannot be reached: no answer in 2 attempts"):
        make(endpoint.url, {"attempts": 2}).detect(view(picture()))


def test_an_answer_is_paid_once_whatever_else_changes(make):
    image = picture(red=(10, 10, 400, 400))
    with FakeEndpoint(see) as endpoint:
        base = make(endpoint.url).detect(view(image))
        unrelated = ({"asking": {"concurrency": 9}}, {"budget": {"price_in": 9.0, "price_out": 9.0}}, {})
        for settings in unrelated:
            assert make(endpoint.url, {"timeout": 7.0, "structured": "never"}, **settings).detect(view(image)) == base
        assert len(endpoint.calls) == 1
        decisive = ({"find": "a leaf"}, {"coordinates": "pixels"}, {"most": 3}, {"pictures": {"max_side": 300}})
        for count, settings in enumerate(decisive, start=2):
            make(endpoint.url, **settings).detect(view(image))
            assert len(endpoint.calls) == count
        make(endpoint.url, {"model": "other"}).detect(view(image))
        make(endpoint.url, {"temperature": 0.5}).detect(view(image))
        make(endpoint.url).detect(view(picture(red=(10, 10, 400, 401))))
        assert len(endpoint.calls) == count + 3
        make(endpoint.url, cache=None).detect(view(image))
        assert len(endpoint.calls) == count + 4
    assert make(endpoint.url).detect(view(image)) == base  # and without any server


def test_the_same_picture_twice_in_a_batch_is_one_question(make):
    image = picture(red=(10, 10, 400, 400))
    with FakeEndpoint(see) as endpoint:
        detector = make(endpoint.url)
        first, second = detector.detect_all([view(image), view(image.copy())])
        assert first == second and len(endpoint.calls) == 1
        assert (detector.asker.spending.questions, detector.asker.spending.cached) == (1, 1)


def test_the_budget_stops_before_the_question_and_says_how_to_go_on(make):
    prices = {"price_in": 1.0, "price_out": 1.0}
    limit = {"max_answer_tokens": 50}
    views = [view(picture((100 + side, 100), red=(10, 10, 90, 90))) for side in range(10)]
    with FakeEndpoint(see) as endpoint:
        first = make(endpoint.url, limit, budget=prices | {"max_cost": 0.0011})
        with pytest.raises(
            BudgetError, match=r"could cost more than is left of max_cost \(0.0011.*raise budget.max_cost"
        ):
            first.detect_all(views)
        asked = len(endpoint.calls)
        assert (
            2 < asked < 10
            and first.asker.spending.cost == pytest.approx(asked * 110 / 1e6)
            and first.asker.spending.cost <= 0.0011
        )
        again = make(endpoint.url, limit, budget=prices | {"max_cost": 0.0011})
        with pytest.raises(BudgetError):
            again.detect_all(views)  # the cap is that of all sessions
        assert len(endpoint.calls) == asked
        more = make(endpoint.url, limit, budget=prices | {"max_cost": 1.0})
        assert all(map(len, more.detect_all(views))) and len(endpoint.calls) == 10
        assert more.asker.spending.cached == asked


def test_max_questions_is_counted_over_batches(make):
    views = [view(picture((100 + side, 100), red=(10, 10, 90, 90))) for side in range(4)]
    with FakeEndpoint(see) as endpoint:
        detector = make(endpoint.url, asking={"max_questions": 3, "concurrency": 2})
        detector.detect_all(views[:2])
        with pytest.raises(BudgetError, match=r"max_questions \(3\)"):
            detector.detect_all(views[2:])
        assert len(endpoint.calls) == 3


def test_the_key_goes_to_its_endpoint_alone_and_into_no_file(make, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("A_KEY", KEY)
    with FakeEndpoint(lambda call: Say(f"your key is {call.headers['authorization'].split()[1]}")) as endpoint:
        detector = make(endpoint.url, {"api_key_env": "A_KEY"}, asking={"repairs": 0})
        detector.detect(view(picture()))
        assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in str(detector.asker.take_unanswered())
        make(endpoint.url, {"model": "other"}).detect(view(picture()))
        assert KEY not in json.dumps(endpoint.calls[-1].headers)
    assert KEY.encode() not in (tmp_path / "vlm" / STORE_NAME).read_bytes()
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ConfigError, match="A_KEY is not set"):
        make(endpoint.url, {"api_key_env": "A_KEY"}).detect(view(picture((50, 50))))
    assert make(endpoint.url, {"api_key_env": "A_KEY"}).detect(view(picture())) == []  # nothing to ask: no key needed


def test_it_is_written_in_one_line_with_the_model_named_once():
    reader = TypeAdapter(OneDetector)
    config = reader.validate_python("vlm:the product's logo")
    assert isinstance(config, VlmDetectorConfig) and config.find == "the product's logo"
    context = DetectorContext(Path("photos"), "meso", 1)
    with pytest.raises(ConfigError, match=r"levels\.meso\.detector: no model is named; set vlm\.endpoint\.model"):
        config.build(context)
    shared = VlmConfig(endpoint={"model": "fake"}, pictures={"max_side": 640}, asking={"concurrency": 7})
    assert config.with_defaults(shared).build(context).batch_size == 7
    assert config.with_defaults(shared).pictures.format == "jpeg"
    own = VlmDetectorConfig(find="x", endpoint={"model": "own"}).with_defaults(shared)
    assert own.endpoint.model == "own" and own.pictures.max_side == 640
    with pytest.raises(ValidationError):
        reader.validate_python("vlm:")


def test_a_digest_of_settings_leaves_out_what_changes_no_answer():
    one = VlmDetectorConfig(find="x", endpoint={"model": "m", "timeout": 3}, asking={"concurrency": 9})
    other = VlmDetectorConfig(find="x", endpoint={"model": "m", "base_url": "http://localhost/v1"})
    dumps = [{"levels": [{"detector": config.model_dump(mode="json")}], "k": 1} for config in (one, other)]
    assert decisive(dumps[0]) == decisive(dumps[1]) != decisive({"levels": [], "k": 1})
    changed = VlmDetectorConfig(find="x", endpoint={"model": "n"}).model_dump(mode="json")
    assert decisive(changed) != decisive(dumps[0]["levels"][0]["detector"])


def test_fingerprints_follow_what_the_model_is_told(make):
    prints = [make("http://x/v1", **s).fingerprint() for s in ({}, {"find": "b"}, {"coordinates": "gemini"}, {})]
    assert prints[0] == prints[3] and len(set(prints)) == 3


def test_the_forecast_counts_what_would_be_sent_and_sends_nothing():
    sizes = [(4000, 3000), (300, 200), (1024, 1024)]
    endpoint = {"model": "fake", "base_url": "http://no-such-host.invalid/v1"}
    free = VlmDetectorConfig(find="a", endpoint=endpoint).forecast(iter(sizes))
    assert free.questions == 3 and free.cost is None and free.tokens_out == 450
    priced = VlmDetectorConfig(find="a", endpoint=endpoint, budget={"price_in": 2.0, "price_out": 10.0}).forecast(sizes)
    assert priced.cost == pytest.approx((priced.tokens_in * 2 + 450 * 10) / 1e6)
    assert (priced + free).questions == 6 and (priced + free).cost == priced.cost
    config = VlmDetectorConfig(find="a", endpoint=endpoint)
    assert sum(config.query(picture(size), {}).estimated_in for size in sizes) == free.tokens_in
