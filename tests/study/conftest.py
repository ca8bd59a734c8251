"""Small studies of coloured squares, and participants that answer them."""

import itertools
import json
import socket

import numpy as np
import pytest
import yaml
from PIL import Image

from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.study.config import StudyConfig
from flowgrain.evaluate.study.create import create_study, draft_study
from flowgrain.evaluate.study.folder import open_study
from flowgrain.evaluate.study.server import ServeConfig, build_app

ARMS = ("zebra-arm", "quokka-arm", "walrus-arm", "ocelot-arm")
QUICK = ServeConfig(token_rate=1000, address_rate=10_000, entries_per_minute=60_000)
_ids = itertools.count()


def write_comparison(folder, arms=ARMS, prompts=("a red square", "a blue square"), seeds=2, datasets=("squares",)):
    """A comparison of 24x24 pictures whose colour tells the arm; every picture has a text chunk that names it."""
    from PIL.PngImagePlugin import PngInfo

    described = []
    for dataset in datasets:
        for number, arm in enumerate(arms):
            target = folder / dataset / arm
            target.mkdir(parents=True)
            lines = []
            for p, prompt in enumerate(prompts):
                for seed in range(seeds):
                    info = PngInfo()
                    info.add_text("parameters", f"made by {arm}")
                    pixels = np.random.default_rng([number, p, seed]).integers(0, 256, (24, 24, 3), dtype=np.uint8)
                    pixels[:, :, 0] = 40 * number
                    Image.fromarray(pixels).save(target / f"{p}-{seed}.png", pnginfo=info)
                    lines.append(json.dumps({"file": f"{p}-{seed}.png", "prompt": prompt, "seed": seed}))
            (target / "samples.jsonl").write_text("\n".join(lines))
        references = folder / dataset / "references"
        references.mkdir()
        for number in range(3):
            Image.new("RGB", (32, 24), (0, 80 * number, 0)).save(references / f"{number}.png")
        variants = [{"name": arm, "pictures": f"{dataset}/{arm}"} for arm in arms]
        described.append(
            {"name": dataset, "description": f"{dataset} on white", "references": f"{dataset}/references",
             "variants": variants}
        )  # fmt: skip
    (folder / "comparison.yaml").write_text(yaml.safe_dump({"datasets": described}))
    return folder


def build_study(folder, per_participant=4, comparison=None, items=None, **settings):
    """Make and open a study below ``folder``."""
    number = next(_ids)
    settings.setdefault("attention", {"degraded": 1, "repeated": 1})
    settings.setdefault("participants", 30)
    config = StudyConfig(per_participant=per_participant, **settings)
    source = read_comparison([write_comparison(folder / f"comparison-{number}", **(comparison or {}))])
    out = folder / f"study-{number}"
    create_study(draft_study(source, config, items), out, lambda done, total: None)
    return open_study(out, None)


@pytest.fixture
def make_study(tmp_path):
    """Make and open a study: ``make_study(per_participant=4, comparison={...}, attention={...}, ...)``."""
    return lambda *args, **settings: build_study(tmp_path, *args, **settings)


@pytest.fixture(scope="module")
def shared_study(tmp_path_factory):
    """A study for the tests of one file that leave no mark on it."""
    study = build_study(tmp_path_factory.mktemp("shared"), participants=100)
    yield study
    study.store.engine.dispose()


@pytest.fixture
def client_of():
    """A client of a study's application, without a network: ``client_of(study, ServeConfig(...))``."""
    from starlette.testclient import TestClient

    opened = []

    def client(study, serve=QUICK, **options):
        opened.append(TestClient(build_app(study, serve), raise_server_exceptions=False, **options))
        return opened[-1]

    yield client
    for item in opened:
        item.close()


class Person:
    """A participant who answers over any client; ``choose(item)`` gives the tiers of places."""

    def __init__(self, client, token=None, enter=None):
        self.client = client
        self.token = token or client.post("/api/enter", json=enter or {}).json()["token"]
        self.headers = {"Authorization": f"Bearer {self.token}"}

    def get(self, path):
        return self.client.get(path, headers=self.headers)

    def post(self, path, body):
        return self.client.post(path, json=body, headers=self.headers)

    def state(self):
        answer = self.get("/api/state")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def consent(self):
        return self.post("/api/consent", {"sha256": self.state()["consent"]["sha256"]})

    def answer(self, item, tiers=None, answer_id=None, active_ms=1, dimensions=("overall",)):
        """Answer ``item`` by tiers of places (0 is the first place); in the order of the places by default."""
        slots = [picture["slot"] for picture in item["pictures"]]
        tiers = [[place] for place in range(len(slots))] if tiers is None else tiers
        named = [[slots[place] for place in tier] for tier in tiers]
        return self.post("/api/answer", {
            "item": item["key"],
            "answers": dict.fromkeys(dimensions, named),
            "active_ms": active_ms,
            "client_answer_id": answer_id or f"answer-{next(_ids):08d}",
        })  # fmt: skip

    def finish(self, choose=lambda item: None, stop_after=None):
        """Agree and answer until the end, or until ``stop_after`` positions are answered."""
        self.consent()
        for done in itertools.count(1):
            item = self.state()["item"]
            if item is None:
                return
            answer = self.answer(item, choose(item))
            assert answer.status_code == 200, answer.text
            if done == stop_after:
                return


@pytest.fixture
def person():
    """``person(client)``: a participant who has entered."""
    return Person


@pytest.fixture
def comparison_folder():
    """``comparison_folder(folder, ...)`` writes a comparison."""
    return write_comparison


@pytest.fixture
def free_port():
    """``free_port()``: a port of 127.0.0.1 that nobody uses."""

    def find():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return taken.getsockname()[1]

    return find
