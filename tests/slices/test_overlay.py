import json

import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageChops
from typer.testing import CliRunner

from flowgrain.cli import main
from flowgrain.data.images import sha1_of
from flowgrain.data.records import SliceRecord
from flowgrain.errors import DataError
from flowgrain.slices.contact_sheet import GRANULARITY_COLOURS
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.overlay import MARGIN, draw_overlay, placement, reject_label, sheet, slice_label
from flowgrain.slices.provenance import sliced_images

REJECTED = (225, 29, 72)


def record(local="micro0", box=(100.0, 50.0, 180.0, 130.0), crop=None, root="fox-1a2b3c4d", **more):
    fields = {
        "slice_id": f"{root}/{local}", "root": root, "image": "fox.png", "image_sha1": "0" * 40, "level": "micro",
        "granularity": "micro", "path": "x.png", "width": 64, "height": 64, "box": box, "crop": crop or box,
        "scale": 1.0, "action": "native", "reason": "r", "parent": None, "detector": "boxes", "label": "head",
        "score": 0.912, "caption": "", "caption_source": "none",
    }  # fmt: skip
    return SliceRecord(**{**fields, **more})


def macro(box=(0.0, 0.0, 400.0, 300.0)):
    return record("macro0", box, level="macro", granularity="macro", detector="whole_image", label="image", score=1.0)


def reject(box=(200.0, 100.0, 320.0, 220.0), **more):
    fields = {
        "image": "fox.png", "root": "fox-1a2b3c4d", "level": "meso", "box": box, "label": "body",
        "score": 0.4, "detector": "boxes", "code": "iou", "reason": "r",
    }  # fmt: skip
    return RejectRecord(**{**fields, **more})


def grey(width=400, height=300):
    return Image.new("RGB", (width, height), (128, 128, 128))


def where(picture, colour):
    """Rectangle around all pixels of a colour."""
    same = np.all(np.asarray(picture) == np.array(colour), axis=-1)
    rows, columns = np.nonzero(same)
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(("size", "side"), [((400, 300), 1024), ((3000, 4500), 512), ((48, 20), 600)])
def test_a_box_is_drawn_where_it_must_be(size, side):
    width, height = size
    box = (0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height)
    picture = draw_overlay(grey(*size), "", [record(box=box)], [], side)
    scale = side / max(size)
    place = placement(size, side)
    assert place.scale == scale
    assert picture.width == round(width * scale) + 2 * MARGIN
    assert picture.height == place.top + round(height * scale) + MARGIN
    colour = GRANULARITY_COLOURS["micro"]
    x0, y0, x1, y1 = (round(edge) for edge in place.rectangle(box))
    middle = (x0 + x1) // 2, (y0 + y1) // 2
    for x in (x0, x1):
        assert colour in [picture.getpixel((x + by, middle[1])) for by in (-1, 0, 1)]
    for y in (y0, y1):
        assert colour in [picture.getpixel((middle[0], y + by)) for by in (-1, 0, 1)]
    for at in (middle, (x0 - 4, middle[1]), (x1 + 4, middle[1]), (middle[0], y1 + 4)):
        assert picture.getpixel(at) == (128, 128, 128)


def test_the_crop_is_a_thinner_line_inside():
    box, crop = (100.0, 50.0, 300.0, 250.0), (140.0, 90.0, 260.0, 210.0)
    picture = draw_overlay(grey(), "", [record(box=box, crop=crop)], [], 1024)
    place, colour = placement((400, 300), 1024), GRANULARITY_COLOURS["micro"]
    middle = round(place.point((200.0, 150.0))[1])

    def width_at(x):
        start = round(place.point((x, 0.0))[0])
        return sum(picture.getpixel((start + offset, middle)) == colour for offset in range(-5, 10))

    assert width_at(100.0) > width_at(140.0) > 0


def test_a_line_leads_from_child_to_parent():
    child = record(box=(20.0, 20.0, 80.0, 80.0), parent="fox-1a2b3c4d/meso0")
    parent = record("meso0", (0.0, 0.0, 380.0, 280.0), level="meso", granularity="meso")
    place = placement((400, 300), 1024)
    halfway = tuple(round(side) for side in place.point(((50 + 190) / 2, (50 + 140) / 2)))
    with_line = draw_overlay(grey(), "", [parent, child], [], 1024)
    around = [with_line.getpixel((halfway[0] + x, halfway[1] + y)) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    assert GRANULARITY_COLOURS["micro"] in around
    orphan = child.model_copy(update={"parent": "fox-1a2b3c4d/gone"})
    without = draw_overlay(grey(), "", [parent, orphan], [], 1024)
    assert without.getpixel(halfway) == (128, 128, 128)


def test_rejected_boxes_are_dashed():
    box = (100.0, 60.0, 300.0, 240.0)
    picture = draw_overlay(grey(), "", [], [reject(box)], 1024)
    place = placement((400, 300), 1024)
    x0, _, x1, y1 = (round(side) for side in place.rectangle(box))
    shown = [picture.getpixel((x, y1)) == REJECTED for x in range(x0, x1)]
    assert 0.3 < np.mean(shown) < 0.7
    assert draw_overlay(grey(), "", [], [reject(None)], 1024).getcolors(10**6) is not None
    assert REJECTED not in {colour for _, colour in draw_overlay(grey(), "", [], [reject(None)], 256).getcolors(10**6)}


def test_labels_say_what_found_it():
    assert slice_label(record()) == "micro0 boxes head 0.91"
    assert slice_label(record(label="")) == "micro0 boxes 0.91"
    assert slice_label(macro()) == "macro0 whole image"
    assert slice_label(record(root="a/fox-1a2b3c4d/p12")) == "p12/micro0 boxes head 0.91"
    assert reject_label(reject()) == "meso iou boxes body 0.40"
    assert reject_label(reject(score=None, label=None, detector=None)) == "meso iou"


def test_labels_stay_inside_and_apart():
    boxes = [(0.0, 0.0, 60.0, 40.0), (2.0, 2.0, 62.0, 42.0), (340.0, 260.0, 400.0, 300.0), (0.0, 0.0, 400.0, 300.0)]
    records = [record(f"micro{index}", box) for index, box in enumerate(boxes)]
    picture = draw_overlay(grey(), "", records, [], 1024)
    alone = [draw_overlay(grey(), "", [item], [], 1024) for item in records]
    assert all(item.size == picture.size for item in alone)
    colour = GRANULARITY_COLOURS["micro"]
    x0, y0, x1, y1 = where(picture, colour)
    assert x0 >= MARGIN - 2 and y0 >= MARGIN and x1 < picture.width and y1 < picture.height
    # letters are white on the chips: were two chips on one place, some letters would be gone
    letters = [np.all(np.asarray(item) == 255, axis=-1).sum() for item in (picture, *alone)]
    assert letters[0] >= 0.9 * sum(letters[1:])


def test_many_slices_and_a_long_caption_fit(tmp_path):
    records = [record(f"micro{index}", (5.0, 5.0, 30.0, 30.0), label="x" * 300) for index in range(40)]
    picture = draw_overlay(grey(40, 40), "name " * 400, records, [reject((0.0, 0.0, 40.0, 40.0))], 300)
    assert picture.width == 300 + 2 * MARGIN


def test_a_sheet_places_every_picture():
    pictures = [Image.new("RGB", (30 + index, 20 + 5 * index), (0, 10 * index, 200)) for index in range(5)]
    page = sheet(pictures, 2)
    colours = dict((colour, count) for count, colour in page.getcolors(10**6))
    assert all(colours[0, 10 * index, 200] == picture.width * picture.height for index, picture in enumerate(pictures))


@pytest.fixture
def dataset(tmp_path):
    """Two sliced images and one with nothing but a rejected box."""
    source, folder = tmp_path / "photos", tmp_path / "set"
    (source / "sub").mkdir(parents=True)
    (folder / ".decompose").mkdir(parents=True)
    lines, refused = [], []
    for index, name in enumerate(("ant.png", "sub/bee.png", "cow.png")):
        grey(120 + index, 90).save(source / name)
        sha1 = sha1_of(source / name)
        if name != "cow.png":
            boxes = {"macro0": (0.0, 0.0, 120.0, 90.0), "micro0": (30.0, 20.0, 60.0, 50.0)}
            lines += [
                record(local, box, root=f"{name[:-4]}-{sha1[:8]}", image=name, image_sha1=sha1).model_dump_json()
                for local, box in boxes.items()
            ]
        refused.append(reject((10.0, 10.0, 50.0, 40.0), image=name).model_dump_json())
    refused.append(RejectRecord(image="broken.png", code="unreadable", reason="r").model_dump_json())
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "rejects.jsonl").write_text("\n".join(refused) + "\n")
    (folder / ".decompose" / "source.json").write_text(json.dumps({"location": str(source)}))
    return folder


def run(*arguments) -> Result:
    return CliRunner().invoke(main.app, ["overlay", *(str(argument) for argument in arguments)])


def drawn(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_records_are_read_by_image(dataset):
    found = list(sliced_images(dataset))
    assert [(item.image, len(item.records), len(item.rejects)) for item in found] == [
        ("ant.png", 2, 0), ("sub/bee.png", 2, 0)
    ]  # fmt: skip
    found = list(sliced_images(dataset, rejects=True))
    assert [(item.image, len(item.records), len(item.rejects)) for item in found] == [
        ("ant.png", 2, 1), ("sub/bee.png", 2, 1), ("cow.png", 0, 1)
    ]  # fmt: skip
    assert found[2].rejects[0].image == "cow.png" and found[2].sha1 is None


def test_overlay_writes_a_picture_an_image(dataset):
    result = run(dataset)
    assert result.exit_code == 0, result.output
    assert drawn(dataset.with_name("set-overlay")) == ["ant.png.png", "sub/bee.png.png"]
    assert "2 pictures -> " in result.output


def test_rejects_limit_image_and_side(dataset, tmp_path):
    assert run(dataset, "--rejects", "--out", tmp_path / "a", "--side", 200).exit_code == 0
    assert drawn(tmp_path / "a") == ["ant.png.png", "cow.png.png", "sub/bee.png.png"]
    assert Image.open(tmp_path / "a" / "ant.png.png").width == 200 + 2 * MARGIN
    assert run(dataset, "--limit", 1, "--out", tmp_path / "b", "--side", 200).exit_code == 0
    assert drawn(tmp_path / "b") == ["ant.png.png"]
    plain, dashed = (Image.open(tmp_path / which / "ant.png.png") for which in "ba")
    assert ImageChops.difference(plain, dashed).getbbox() is not None
    result = run(dataset, "--image", "sub/bee.png", "--out", tmp_path / "bee.webp")
    assert result.exit_code == 0 and Image.open(tmp_path / "bee.webp").format == "WEBP"


def test_sheet_pages(dataset, tmp_path):
    options = ("--sheet", "--rejects", "--side", 150)
    assert run(dataset, *options, "--columns", 2, "--rows", 1, "--out", tmp_path / "pages").exit_code == 0
    assert drawn(tmp_path / "pages") == ["page-001.png", "page-002.png"]
    assert run(dataset, *options, "--out", tmp_path / "all.png").exit_code == 0
    assert Image.open(tmp_path / "all.png").width > 3 * 150


def test_a_missing_or_changed_image_is_told(dataset, tmp_path):
    (tmp_path / "photos" / "ant.png").unlink()
    grey(100, 100).save(tmp_path / "photos" / "sub" / "bee.png")
    result = run(dataset, "--out", tmp_path / "o", "--side", 300)
    assert result.exit_code == 0
    assert "left out: " in result.output and "ant.png: no such file" in result.output
    assert drawn(tmp_path / "o") == ["sub/bee.png.png"]
    changed = Image.open(tmp_path / "o" / "sub" / "bee.png.png")
    lines = (dataset / "manifest.jsonl").read_text()
    record_now = lines.replace(
        json.loads(lines.splitlines()[2])["image_sha1"], sha1_of(tmp_path / "photos/sub/bee.png")
    )
    (dataset / "manifest.jsonl").write_text(record_now)
    run(dataset, "--out", tmp_path / "p", "--side", 300)
    same = Image.open(tmp_path / "p" / "sub" / "bee.png.png")
    box = ImageChops.difference(changed, same).getbbox()
    assert box is not None and box[3] <= placement((100, 100), 300).top  # in the caption alone


def error(*arguments):
    with pytest.raises(DataError) as caught:
        main.app(["overlay", *(str(argument) for argument in arguments)], standalone_mode=False)
    return str(caught.value)


def test_bad_input_is_one_clear_error(dataset, tmp_path):
    assert "holds no manifest.jsonl" in error(tmp_path / "photos")
    assert "no 'x.png' in its manifest; images without any slice" in error(
        dataset, "--image", "x.png", "--out", tmp_path / "o"
    )
    assert "no such folder" in error(dataset, "--source", tmp_path / "nowhere")
    assert "none of its images could be drawn" in error(dataset, "--source", tmp_path / "photos" / "sub")
    (dataset / ".decompose" / "source.json").unlink()
    assert "name their folder by --source" in error(dataset)
    (dataset / ".decompose" / "source.json").write_text("{")
    assert "name their folder by --source" in error(dataset)
    (dataset / "manifest.jsonl").write_text('{"slice_id": 3}\n')
    assert "manifest.jsonl:1: " in error(dataset, "--source", tmp_path / "photos")
    (dataset / "manifest.jsonl").write_bytes(b"\xff\xfe\n")
    assert "manifest.jsonl:1: " in error(dataset, "--source", tmp_path / "photos")


def test_a_file_holds_one_picture(dataset, tmp_path):
    result = run(dataset, "--out", tmp_path / "all.png")
    assert result.exit_code == 2 and "holds at most 1 of the images" in result.output
    assert not (tmp_path / "all.png").exists()


def test_a_manifest_cannot_write_elsewhere(dataset, tmp_path):
    grey().save(tmp_path / "secret.png")
    text = (dataset / "manifest.jsonl").read_text().replace('"image":"ant.png"', '"image":"../secret.png"')
    (dataset / "manifest.jsonl").write_text(text)
    assert "manifest.jsonl:1: image: '../secret.png'" in error(dataset, "--out", tmp_path / "o" / "p")
    assert not (tmp_path / "o").exists()


def test_help_has_an_example():
    assert "flowgrain overlay dataset --limit 20 --rejects" in run("--help").output
