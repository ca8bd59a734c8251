"""Decompose with a model behind an endpoint for boxes and captions, from the command line to the manifest."""

import json
import sys
import time
from pathlib import Path

import pytest
from decompose_runs import data_of, kill_when, leftovers, start_decompose
from PIL import Image, ImageDraw

from flowgrain.cli.main import main
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors.local import InProcess, WorkerProcesses
from flowgrain.slices.settings import load_settings

sys.path.append(str(Path(__file__).parents[1] / "vlm"))
from fake_endpoint import Fail, FakeEndpoint, Hang, Say
from seeing import COLOURS, rectangles, see

KEY = "sk-secret-0123456789abcdef"
PRICES = ("vlm.budget.price_in=1", "vlm.budget.price_out=10")


def paint(path, red, blue, size=(400, 300)):
    """A grey picture with a red and a blue rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for box, colour in ((red, "red"), (blue, "blue")):
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[colour])
    image.save(path)


def pictures(folder, count):
    """``count`` different pictures; each has two rectangles of 160 x 160 and of 100 x 110."""
    for index in range(count):
        left = 4 * index % 60
        paint(folder / f"photo{index:02d}.png", (left, 40, left + 160, 200), (280, 100 + index, 380, 210 + index))
    return folder


def answer(call):
    """What a model says that sees rectangles."""
    if '"boxes"' in call.text:
        return see(call)
    return Say(json.dumps({"caption": "A wall with " + " and ".join(name for name, _ in rectangles(call.pictures[0]))}))


def settings(endpoint, *more, captioner=True):
    """Overrides of tiny-128: boxes of a model at the finest level, captions by the same one."""
    level = "levels.micro={detector: 'vlm:coloured things', max_instances: 2, caption: 'close-up of {caption}'}"
    asked = (f"vlm.endpoint.base_url={endpoint.url}", "vlm.endpoint.model=fake", "vlm.endpoint.attempts=1")
    return (*asked, level, "levels.meso=null", *(("captioner=vlm",) if captioner else ()), *more)


def config(endpoint, *more, **which):
    return load_settings(["tiny-128"], None, None, settings(endpoint, *more, **which))[0]


def run(source, out, *overrides, expect=0):
    """``flowgrain decompose`` in this process."""
    arguments = ["decompose", str(source), "--out", str(out), "--preset", "tiny-128", *overrides]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == expect


def records(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def rejects(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def test_boxes_and_captions_of_a_model(tmp_path, capsys):
    source, out = pictures(tmp_path / "photos", 3), tmp_path / "out"
    (source / "photo01.txt").write_text("Hilda's wall")
    with FakeEndpoint(answer) as endpoint:
        run(source, out, *settings(endpoint, *PRICES))
        said = capsys.readouterr().out
        first, asked = data_of(out), len(endpoint.calls)
        # a question a picture for its boxes, a caption for each but the one that has one, and for each box
        assert asked == 3 + 2 + 6
        assert f"models           {asked} questions asked, 0 answered before, 0 without a usable answer; " in said
        assert f"{asked} requests, {100 * asked} tokens in and {10 * asked} out, cost 0.0022\n" in said
        run(source, out, *settings(endpoint, *PRICES))
        assert "3 images unchanged" in capsys.readouterr().out
        # without what was remembered of the pictures, all is cut again and nothing asked
        for record in (out / ".decompose" / "chunks").iterdir():
            record.unlink()
        run(source, out, *settings(endpoint, *PRICES))
        assert f"0 questions asked, {asked} answered before" in capsys.readouterr().out
        assert len(endpoint.calls) == asked
    assert data_of(out) == first and not leftovers(out)
    boxes = {(r["image"], r["label"]): r["box"] for r in records(out) if r["level"] == "micro"}
    assert len(boxes) == 6
    for (image, label), box in boxes.items():
        left = 4 * int(image[5:7])
        top = 100 + int(image[5:7])
        truth = {"red": (left, 40, left + 160, 200), "blue": (280, top, 380, top + 110)}[label]
        assert box == pytest.approx(truth, abs=1.0), (image, label)  # in source pixels, to the model's thousandths
    micro = [r for r in records(out) if r["level"] == "micro"]
    assert {r["caption_source"] for r in micro} == {"model"} and {r["detector"] for r in micro} == {"vlm"}
    assert all(r["parent"] == f"{r['root']}/macro0" and r["score"] == 0.75 for r in micro)
    macro = {r["image"]: (r["caption"], r["caption_source"]) for r in records(out) if r["level"] == "macro"}
    assert macro["photo01.png"] == ("Hilda's wall", "root")
    assert macro["photo00.png"][0] == "A wall with red and blue"


def test_a_dry_run_asks_nothing_and_says_what_asking_would_take(tmp_path, capsys):
    source = pictures(tmp_path / "photos", 3)
    with FakeEndpoint(answer) as endpoint:
        with pytest.raises(SystemExit):
            main(["decompose", str(source), "--dry-run", "--preset", "tiny-128", *settings(endpoint, *PRICES)])
        assert not endpoint.calls
        said = capsys.readouterr()
        assert "not asked in a dry run: 6 questions, about " in said.out and ", cost 0.0" in said.out
        assert "level 'micro' has no slice; see the discards above; a model that finds its boxes was not" in said.err
        with pytest.raises(SystemExit):
            main(["decompose", str(source), "--dry-run", "--preset", "tiny-128", *settings(endpoint)])
        assert "cost unknown without prices" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_refusal_and_a_failure_cost_one_picture_each_and_only_the_failure_is_tried_again(tmp_path, capsys):
    source, out = pictures(tmp_path / "photos", 6), tmp_path / "out"
    paint(source / "zoo.png", (0, 0, 200, 200), (210, 0, 300, 90), size=(300, 210))
    paint(source / "bad.png", (0, 0, 200, 200), (210, 0, 300, 90), size=(300, 220))
    well = []

    def behave(call):
        size = call.pictures[0].size
        if size == (300, 210):
            return Say(None, refusal="no zoos")
        return Fail(500, "tired") if size == (300, 220) and not well else answer(call)

    more = ("vlm.asking.repairs=0",)
    with FakeEndpoint(behave) as endpoint:
        run(source, out, *settings(endpoint, *more, captioner=False))
        said = capsys.readouterr().out
        assert "8 questions asked, 0 answered before, 2 without a usable answer" in said
        found = {line["image"]: line for line in rejects(out) if line["code"].startswith("vlm_")}
        assert {name: (line["level"], line["code"]) for name, line in found.items()} == {
            "zoo.png": ("micro", "vlm_refused"),
            "bad.png": ("micro", "vlm_unreachable"),
        }
        assert "no zoos" in found["zoo.png"]["reason"] and "500" in found["bad.png"]["reason"]
        assert {r["image"] for r in records(out) if r["level"] == "macro"} >= {"zoo.png", "bad.png"}
        well.append(True)
        asked = len(endpoint.calls)
        run(source, out, *settings(endpoint, *more, captioner=False))
        assert len(endpoint.calls) == asked + 1
        assert [line["code"] for line in rejects(out) if line["code"].startswith("vlm_")] == ["vlm_refused"]
        assert sum(r["image"] == "bad.png" for r in records(out)) == 3
        run(source, out, *settings(endpoint, *more, captioner=False))
        assert len(endpoint.calls) == asked + 1


def test_killed_in_the_middle_and_gone_on_asks_nothing_twice(tmp_path):
    source, out = pictures(tmp_path / "photos", 8), tmp_path / "out"
    stuck = []

    def behave(call):
        if call.number < 5 or stuck:
            return answer(call)
        return Hang(20)

    with FakeEndpoint(behave) as endpoint:
        overrides = settings(endpoint, "vlm.asking.concurrency=2")
        process = start_decompose(source, out, overrides, 1)
        # five answers have arrived, and two questions are open that nobody will hear the answer of
        assert kill_when(process, lambda: len(endpoint.calls) >= 7 and not time.sleep(0.5))
        stuck.append(True)
        answered = [key for key, count in list(endpoint.counts.items())[:5] if count == 1]
        assert len(answered) == 5
        decompose(source, out, config(endpoint, "vlm.asking.concurrency=2"))
        assert all(endpoint.counts[key] == 1 for key in answered)
        assert sum(endpoint.counts.values()) == len(endpoint.counts) + 2
        decompose(source, tmp_path / "whole", config(endpoint, "vlm.asking.concurrency=2"))
    assert data_of(out) == data_of(tmp_path / "whole") and not leftovers(out)


def test_a_run_stops_at_max_cost_and_goes_on_when_it_is_raised(tmp_path, capsys):
    source, out = pictures(tmp_path / "photos", 6), tmp_path / "out"
    with FakeEndpoint(answer) as endpoint:
        common = settings(endpoint, *PRICES, "vlm.endpoint.max_answer_tokens=20", captioner=False)
        run(source, out, *common, "vlm.budget.max_cost=0.0009", expect=2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "could cost more than is left of max_cost (0.0009, " in error
        assert "raise budget.max_cost and run the same command to go on" in error
        asked = len(endpoint.calls)
        assert 1 <= asked < 6
        run(source, out, *common, "vlm.budget.max_cost=1")
        assert len(endpoint.calls) == 6 and set(endpoint.counts.values()) == {1}
        assert f"{6 - asked} questions asked, {asked} answered before" in capsys.readouterr().out


def test_a_wrong_key_is_told_and_never_shown(tmp_path, capfd, monkeypatch):
    source, out = pictures(tmp_path / "photos", 2), tmp_path / "out"
    monkeypatch.setenv("MY_KEY", KEY)
    with FakeEndpoint(lambda call: Fail(401, f"Incorrect API key provided: {KEY}")) as endpoint:
        run(source, out, *settings(endpoint, "vlm.endpoint.api_key_env=MY_KEY"), expect=2)
        assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"
    said = capfd.readouterr()
    assert said.err.count("\n") == 1 and "refuses the key in MY_KEY (401: " in said.err
    assert KEY not in said.out + said.err
    assert not any(KEY.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_an_endpoint_that_goes_away_ends_the_run_with_finished_chunks_kept(tmp_path, capsys):
    source, out = pictures(tmp_path / "photos", 6), tmp_path / "out"
    with FakeEndpoint(answer) as endpoint:
        common = settings(endpoint, captioner=False)
        run(source, out, *common)
    before, _ = data_of(out), capsys.readouterr()
    pictures(source, 40)
    more = [*common, "vlm.endpoint.first_wait=0"]
    run(source, out, *more, expect=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{endpoint.url} cannot be reached: " in error and "check the address" in error
    assert all((out / name).read_bytes() == data for name, data in before.items() if name.startswith("slices/"))
    with FakeEndpoint(answer) as again:
        # another address of the same model: what was answered stays answered
        run(source, out, *settings(again, captioner=False))
        assert len(again.calls) == 34


def test_two_workers_share_the_answers(tmp_path):
    source = pictures(tmp_path / "photos", 20)
    for index in range(20):  # the same pictures once more, in other chunks
        (source / f"z{index:02d}.png").write_bytes((source / f"photo{index:02d}.png").read_bytes())
    with FakeEndpoint(answer) as endpoint:
        chosen = config(endpoint, captioner=False)
        both = decompose(source, tmp_path / "two", chosen, None, RunOptions(WorkerProcesses(2)))
        assert len(endpoint.calls) == 20 and set(endpoint.counts.values()) == {1}
        assert (both.spent.questions, both.spent.cached, both.spent.failed) == (20, 20, 0)
        alone = decompose(source, tmp_path / "one", chosen, None, RunOptions(InProcess()))
        assert alone.spent.questions == 20
    assert data_of(tmp_path / "one") == data_of(tmp_path / "two") and not leftovers(tmp_path / "two")
