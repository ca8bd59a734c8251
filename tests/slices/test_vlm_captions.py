"""Captions say what a close-up shows and that it is one, keep names, and never say how they came about."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1] / "vlm"))  # the fake endpoint

from fake_endpoint import Fail, FakeEndpoint, Say
from seeing import COLOURS, rectangles

from flowgrain.data.records import SliceRecord
from flowgrain.errors import ConfigError
from flowgrain.slices.captioners import CaptionerContext, CaptionRequest
from flowgrain.slices.captioners.apply import CAPTIONER_SOURCE, caption_roots, caption_slices
from flowgrain.slices.captioners.cleaning import check, clean, finished, with_view
from flowgrain.slices.captioners.vlm import VlmCaptionsConfig
from flowgrain.vlm.answers import AnswerError
from flowgrain.vlm.failures import BudgetError, EndpointError
from flowgrain.vlm.settings import VlmConfig

GREY = (128, 128, 128)


def picture(size=(300, 200), **boxes):
    image = Image.new("RGB", size, GREY)
    for name, (x0, y0, x1, y1) in boxes.items():
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[name])
    return image


def says(text):
    return Say(json.dumps({"caption": text}))


def describe(call):
    """What a model says that looks at the first picture alone."""
    return says("The image shows " + " and ".join(f"a {name} thing" for name, _ in rectangles(call.pictures[0])) + ".")


def part(image, box, **more):
    more = {"root_caption": "Ysolde the fox", "level": "head", "label": "head", "granularity": "micro"} | more
    return CaptionRequest("fox.png", image.crop(box), image, **more)


@pytest.fixture
def make(tmp_path):
    """(url, settings) -> captioner whose answers are kept in one folder."""
    made = []

    def build(url, endpoint=None, cache=tmp_path / "vlm", context_trigger="", **settings):
        settings["endpoint"] = {"model": "fake", "base_url": url, "first_wait": 0.0, **(endpoint or {})}
        made.append(VlmCaptionsConfig(**settings).build(CaptionerContext(context_trigger, cache)))
        return made[-1]

    yield build
    for captioner in made:
        captioner.asker.close()


def test_a_close_up_is_called_one_and_the_whole_is_shown_for_orientation_alone(make):
    image = picture((600, 400), red=(10, 10, 100, 100), blue=(300, 200, 590, 390))
    requests = [
        CaptionRequest("fox.png", image),
        part(image, (0, 0, 150, 150), level="bust", granularity="meso"),
        part(image, (280, 180, 600, 400)),
    ]
    with FakeEndpoint(describe) as endpoint:
        captions = make(endpoint.url, context_side=100).caption_all(requests)
        calls = sorted(endpoint.calls, key=lambda call: len(call.text))
    assert captions == [
        "A red thing and a blue thing.",
        "close-up of a red thing.",
        "extreme close-up of a blue thing.",
    ]
    whole, *parts = calls
    assert len(whole.pictures) == 1 and "larger" not in whole.text
    for call in parts:
        first, second = call.pictures
        assert second.size == (100, 67) and max(first.size) > 100
        assert "Ysolde the fox" in call.text and "exactly the same word" in call.text and "'head'" in call.text
        assert "close-up of a part of a larger picture" in call.text and "begin with" in call.text
        assert "fox.png" not in json.dumps(call.body)
        assert "boxes, frames" in call.messages[0]["content"]
    with FakeEndpoint(describe) as endpoint:
        make(endpoint.url, cache=None, context_side=0).caption_all(requests[1:])
        assert {len(call.pictures) for call in endpoint.calls} == {1} and "second" not in endpoint.calls[0].text


def test_levels_can_be_called_otherwise_and_a_part_of_no_level_is_no_close_up(make):
    image = picture(red=(10, 10, 100, 100))
    with FakeEndpoint(describe) as endpoint:
        captioner = make(endpoint.url, views={"head": "head shot", "eyes": ""})
        captions = captioner.caption_all(
            [
                part(image, (0, 0, 150, 150), level=level, granularity=g)
                for level, g in (("head", "micro"), ("eyes", "micro"), ("person", "macro"))
            ]
        )
    assert captions == ["head shot of a red thing.", "A red thing.", "A red thing."]


def test_what_follows_an_opening_keeps_its_letter_where_something_is_put_before_it(make):
    image = picture(red=(10, 10, 100, 100))
    with FakeEndpoint(lambda call: says("The image shows whiskers")) as endpoint:
        captions = make(endpoint.url).caption_all([CaptionRequest("a", image), part(image, (0, 0, 99, 99))])
    assert captions == ["Whiskers", "extreme close-up of whiskers"]


def test_trigger_words_and_instructions_are_told_and_trigger_words_are_there(make):
    with FakeEndpoint(describe) as endpoint:
        request = CaptionRequest("fox.png", picture(red=(10, 10, 100, 100)), root_caption="Ysolde, openmoji style")
        for settings, expected in (
            ({"context_trigger": "ohwx"}, "ohwx, A red thing."),
            ({"context_trigger": "ohwx", "trigger": "zzz"}, "zzz, A red thing."),
            ({"context_trigger": "ohwx", "trigger": ""}, "A red thing."),
            ({"context_trigger": "red"}, "A red thing."),
            ({"instructions": "Say which season it is."}, "A red thing."),
        ):
            assert make(endpoint.url, **settings).caption_all([request]) == [expected]
            call = endpoint.calls[-1]
            assert ("ohwx" in call.text) == ("trigger" not in settings and settings.get("context_trigger") == "ohwx")
            assert ("Say which season" in call.text) == ("instructions" in settings)
            assert "already has this caption" in call.text and "Ysolde, openmoji style" in call.text


def test_tags(make):
    with FakeEndpoint(lambda call: says('"Red fur, blue eyes; red fur,\nwhiskers."')) as endpoint:
        captioner = make(endpoint.url, style="tags", context_trigger="ysolde")
        image = picture()
        captions = captioner.caption_all([CaptionRequest("a", image), part(image, (0, 0, 99, 99))])
        assert captions == [
            "ysolde, Red fur, blue eyes, red fur, whiskers",
            "ysolde, extreme close-up, Red fur, blue eyes, red fur, whiskers",
        ]
        assert all("tags separated by commas" in call.text for call in endpoint.calls)


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The image shows a fox.", "A fox."),
        ("This picture depicts two foxes", "Two foxes"),
        ("This is an image of a fox", "A fox"),
        ("In this photo, we see a fox", "A fox"),
        ("In this picture there is a fox", "In this picture there is a fox"),
        ("This close-up photo shows an eye", "An eye"),
        ('"A fox."', "A fox."),
        ("“A fox.”", "A fox."),
        ("'A fox'", "A fox"),
        ('"Fox" is written on a "wall"', '"Fox" is written on a "wall"'),
        ("Caption: **A fox**\n\n in  snow", "A fox in snow"),
        ('**Caption:** "The image shows a fox"', "A fox"),
        ("a fox in a picture frame", "a fox in a picture frame"),
        ("The photographer holds a picture", "The photographer holds a picture"),
    ],
)
def test_answers_are_cleaned(said, caption):
    assert clean(said, "sentence") == caption


@given(st.text(max_size=80))
def test_cleaning_gives_one_line_and_cleaning_again_changes_nothing(text):
    for style in ("sentence", "tags"):
        once = clean(text, style)
        assert once == " ".join(once.split()) and "\n" not in once
        assert clean(once, style) == once


@pytest.mark.parametrize(
    ("caption", "view", "result"),
    [
        ("A fox's eye", "close-up", "close-up of a fox's eye"),
        ("Anna's eye", "close-up", "close-up of Anna's eye"),
        ("Close-up of an eye", "close-up", "Close-up of an eye"),
        ("A closeup of an eye", "close-up", "A closeup of an eye"),
        ("A close up of an eye", "extreme close-up", "extreme close-up of an eye"),
        ("An extreme close-up of an eye", "close-up", "An extreme close-up of an eye"),
        ("an eye", "", "an eye"),
        ("an eye", "head shot", "head shot of an eye"),
    ],
)
def test_the_view_is_said_once(caption, view, result):
    assert with_view(caption, view, "sentence") == result
    assert with_view(result, view, "sentence") == result
    assert finished(caption, view, "ohwx", "sentence") == f"ohwx, {result}"


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("", "is empty"),
        ("word " * 16, "has 16 words, at most 10"),
        ("a fox in a red bounding box", "mentions 'bounding box'"),
        ("a fox as in the second picture", "mentions 'second picture'"),
        ("an ear, cropped from a larger image", "mentions 'cropped from'"),
    ],
)
def test_what_cleaning_cannot_mend_is_sent_back(caption, wrong, make):
    with pytest.raises(AnswerError, match=wrong):
        check(caption, 10)
    with FakeEndpoint(lambda call: says("a fox" if call.is_repair else caption)) as endpoint:
        assert make(endpoint.url, max_words=10).caption_all([CaptionRequest("a", picture())]) == ["a fox"]
        assert len(endpoint.calls) == 2 and wrong.split("'")[0] in endpoint.calls[1].messages[-1]["content"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Say(None, refusal="no people"), "vlm_refused"),
        (Say("a fox"), "vlm_unusable"),
        (Say('{"caption": 3}'), "vlm_unusable"),
        (Say('{"caption": "a'), "vlm_unusable"),
        (Fail(400, "no"), "vlm_rejected"),
    ],
)
def test_without_a_usable_answer_there_is_no_caption_and_the_reason_is_told(answer, code, make):
    with FakeEndpoint(lambda call: answer if call.pictures[0].size == (9, 9) else says("a fox")) as endpoint:
        captioner = make(endpoint.url)
        requests = [CaptionRequest("a.png", picture()), CaptionRequest("b.png", picture((9, 9)))]
        assert captioner.caption_all(requests) == ["a fox", None]
        (told,) = captioner.asker.take_unanswered()
        assert (told.name, told.code, told.final) == ("b.png", code, True)
        before = len(endpoint.calls)
        assert captioner.caption_all(requests) == ["a fox", None] and len(endpoint.calls) == before
        assert captioner.asker.spending.failed == 2 and captioner.asker.spending.cached == 2


def test_budget_endpoint_and_settings_fail_as_those_of_detectors(make):
    image = picture()
    with FakeEndpoint(lambda call: says("a fox")) as endpoint:
        prices = {"price_in": 1.0, "price_out": 1.0, "max_cost": 0.000001}
        with pytest.raises(BudgetError, match="max_cost"):
            make(endpoint.url, budget=prices).caption_all([CaptionRequest("a", image)])
        assert not endpoint.calls
        endpoint.behave = lambda call: Fail(401)
        with pytest.raises(EndpointError, match="refuses"):
            make(endpoint.url).caption_all([CaptionRequest("a", image)])
    with pytest.raises(ConfigError, match="captioner: no model is named"):
        VlmCaptionsConfig().build(CaptionerContext())
    shared = VlmConfig(endpoint={"model": "m"}, asking={"concurrency": 9})
    assert VlmCaptionsConfig().with_defaults(shared).build(CaptionerContext()).batch_size == 9


def test_better_cleaning_costs_no_new_answers(make, monkeypatch):
    request = CaptionRequest("a", picture())
    with FakeEndpoint(lambda call: says("behold, a fox")) as endpoint:
        assert make(endpoint.url).caption_all([request]) == ["behold, a fox"]
        monkeypatch.setattr(
            "flowgrain.slices.captioners.vlm.clean", lambda text, style, begins=True: text.removeprefix("behold, ")
        )
        assert make(endpoint.url).caption_all([request]) == ["a fox"] and len(endpoint.calls) == 1


def record(image, level, crop, **more):
    values = {
        "slice_id": f"fox/{level}0", "root": "fox", "image": "fox.png", "image_sha1": "0", "level": level,
        "granularity": "micro", "path": "p", "width": 64, "height": 64, "box": crop, "crop": crop, "scale": 1.0,
        "action": "native", "reason": "", "parent": None, "detector": "vlm", "label": level, "score": 1.0,
        "caption": "written", "caption_source": "template",
    }  # fmt: skip
    return SliceRecord(**values | more)


def test_what_is_asked_about_of_a_data_set(make):
    image = picture((200, 200), red=(0, 0, 90, 90), blue=(100, 100, 200, 200))
    other = picture((50, 50), green=(10, 10, 40, 40))
    cut = [
        record(image, "macro", (0, 0, 200, 200), detector="whole_image", granularity="macro"),
        record(image, "head", (0.5, 0, 99.5, 99)),
        record(image, "eyes", (95, 95, 200, 200), caption_source="sidecar"),
    ]
    with FakeEndpoint(describe) as endpoint:
        missing, always = make(endpoint.url), make(endpoint.url, when="always")
        none = make(endpoint.url, roots=False, slices=False)
        names, images = ["fox.png", "hen.png"], [image, other]
        assert caption_roots(none, names, images, [None, "hen"]) == [None, "hen"]
        roots = caption_roots(missing, names, images, [None, "hen"])
        assert roots == ["A red thing and a blue thing.", "hen"]
        assert caption_roots(always, names, images, [None, "hen"])[1] == "A green thing."
        assert caption_slices(none, images, [cut, []], roots) == [tuple(cut), ()]
        first, second = caption_slices(missing, images, [cut, []], roots)
        assert second == () and (first[0], first[2]) == (cut[0], cut[2])
        assert first[1].caption == "extreme close-up of a red thing." and first[1].caption_source == CAPTIONER_SOURCE
        assert roots[0] in endpoint.calls[-1].text and endpoint.calls[-1].pictures[0].size == (100, 99)
        first, _ = caption_slices(always, images, [cut, []], roots)
        assert first[2].caption == "extreme close-up of a blue thing."
        assert caption_slices(missing, [], [], []) == [] == caption_roots(missing, [], [], [])


def test_the_forecast_counts_what_would_be_sent():
    config = VlmCaptionsConfig(endpoint={"model": "m"}, budget={"price_in": 1.0, "price_out": 1.0})
    both = config.forecast([(900, 900)] * 3, iter([((200, 200), (900, 900))] * 5))
    assert both.questions == 8 and both.tokens_out == 8 * 150
    assert both.cost == pytest.approx((both.tokens_in + both.tokens_out) / 1e6)
    roots = config.model_copy(update={"slices": False}).forecast([(900, 900)] * 3, [((200, 200), (900, 900))] * 5)
    slices = config.model_copy(update={"roots": False}).forecast([(900, 900)] * 3, [((200, 200), (900, 900))] * 5)
    assert roots + slices == both
    request = part(picture((900, 900)), (0, 0, 200, 200), root_caption="x" * 200, level="level", label="label")
    assert config.query(request, "trigger").estimated_in * 5 == slices.tokens_in


def test_fingerprints_follow_what_the_model_is_told(make):
    prints = [
        make("http://x/v1", **settings).fingerprint()
        for settings in (
            {},
            {"style": "tags"},
            {"instructions": "x"},
            {"context_trigger": "x"},
            {"views": {"level": "y"}},
            {},
        )
    ]
    assert prints[0] == prints[-1] and len(set(prints)) == 5
