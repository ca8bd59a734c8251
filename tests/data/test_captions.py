"""Captions: what a slice is called, and by whom."""

import pytest

from flowgrain.data.captions import (
    CaptionConflict,
    check_template,
    decorate,
    read_caption,
    slice_caption,
    slice_caption_beside,
    with_trigger,
)
from flowgrain.data.collections import Folder, Item
from flowgrain.errors import DataError

CLOSE = "close-up of {caption}"


def test_reading(tmp_path):
    image = tmp_path / "fox.jpg"
    assert read_caption(image) is None
    (tmp_path / "fox.txt").write_bytes("\ufeffa fox,\n  openmoji style \n".encode())
    assert read_caption(image) == "a fox, openmoji style"
    (tmp_path / "fox.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"fox\.txt: caption is not UTF-8 \(byte 3\)"):
        read_caption(image)


def test_both_extensions(tmp_path):
    image = tmp_path / "fox.jpg"
    (tmp_path / "fox.caption").write_text("a fox")
    assert read_caption(image) == "a fox"
    (tmp_path / "fox.txt").write_text(" ")
    assert read_caption(image) == "a fox"
    (tmp_path / "fox.txt").write_text("a  fox\n")
    assert read_caption(image) == "a fox"
    (tmp_path / "fox.txt").write_text("a badger")
    with pytest.raises(CaptionConflict, match=r"fox\.txt and fox\.caption hold different captions of fox\.jpg"):
        read_caption(image)
    assert (read_caption(image, ".txt"), read_caption(image, ".caption")) == ("a badger", "a fox")
    (tmp_path / "fox.txt").unlink()
    assert read_caption(image, ".txt") is None
    (tmp_path / "fox.caption").write_text("")
    assert read_caption(image) == ""


def test_decoration_and_trigger():
    assert decorate("a fox", "photo of", "on film") == "photo of a fox on film"
    assert decorate("a fox", "", ", film") == "a fox, film"
    assert decorate("", "photo", "") == "photo"
    assert with_trigger("ohwxs statue", "ohwx") == "ohwx, ohwxs statue"
    assert with_trigger("the ohwx statue", "ohwx") == "the ohwx statue"


def test_slice_sidecars_in_order(tmp_path):
    image = Item(Folder(tmp_path), "fox.png")
    (tmp_path / "fox.micro.txt").write_text("an eye")
    assert slice_caption_beside(image, ["micro0", "micro"]) == "an eye"
    (tmp_path / "fox.micro0.txt").write_text("the left eye")
    assert slice_caption_beside(image, ["micro0", "micro"]) == "the left eye"
    assert slice_caption_beside(image, ["meso0", "meso"]) is None


@pytest.mark.parametrize(
    ("own", "template", "root", "trigger", "text", "source"),
    [
        ("an eye", CLOSE, "a fox", "", "an eye", "sidecar"),
        (None, CLOSE, "a fox", "", "close-up of a fox", "template"),
        (None, "extreme " + CLOSE, "a fox", "", "extreme close-up of a fox", "template"),
        (None, "{caption}", "a fox", "", "a fox", "root"),
        (None, CLOSE, "a fox", "emo style", "close-up of a fox, emo style", "template"),
        (None, CLOSE, "a fox, emo style", "emo style", "close-up of a fox, emo style", "template"),
        (None, "{trigger} {label}, {caption}", "a fox", "emo", "emo face, a fox", "template"),
        (None, CLOSE, None, "", "", "none"),
        (None, "{caption}", None, "", "", "none"),
        (None, CLOSE, None, "emo style", "close-up of emo style", "template"),
        (None, "a {label}", None, "", "a face", "template"),
    ],
)
def test_resolution(own, template, root, trigger, text, source):
    caption = slice_caption(own, template, root, trigger, "face")
    assert (caption.text, caption.source) == (text, source)


@pytest.mark.parametrize("template", ["{capton}", "{", "{caption.x}", "{}"])
def test_bad_templates(template):
    with pytest.raises(ValueError, match="caption template"):
        check_template(template)
