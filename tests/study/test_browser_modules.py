"""The parts of the page that can be tried on their own, inside the browser that runs them."""

import pytest
from browser_driver import Sitter

pytest_plugins = ("browser_fixtures",)

# random taps, ranks, removals and choices on every size; the first broken law is returned
_RANKING_LAWS = """
async () => {
  const { Ranking } = await import("./static/ranking.js");
  let seed = 7;
  const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
  for (let round = 0; round < 400; round += 1) {
    const n = 2 + random(7);
    const slots = Array.from({ length: n }, (_, i) => `slot${i}`);
    const [answer, ties] = [["rank", true], ["rank", false], ["best", false]][random(3)];
    const ranking = new Ranking(slots, answer, ties);
    for (let step = 0; step < 30; step += 1) {
      const slot = slots[random(n)];
      const [before, rank] = [ranking.rankOf(slot), 1 + random(ranking.places)];
      const act = random(4);
      if (act === 0) ranking.tap(slot);
      else if (act === 1) ranking.place(slot, rank);
      else if (act === 2) ranking.remove(slot);
      else ranking.choose(rank);
      if (act === 0 && (before === null) !== (ranking.rankOf(slot) !== null)) return "a tap gives or takes a rank";
      if (act === 1 && ranking.rankOf(slot) !== rank) return "a given rank holds";
      const ranks = slots.map((s) => ranking.rankOf(s)).filter((r) => r !== null);
      if (ranks.length !== ranking.placed) return "placed counts the ranks";
      if (!ties && new Set(ranks).size !== ranks.length) return "without ties no rank is shared";
      if (ranks.some((r) => r < 1 || r > ranking.places)) return "ranks are in range";
      if (!ranking.complete && ranking.next === null) return "an open ranking has a next rank";
      if (!ranking.complete) continue;
      const tiers = ranking.tiers();
      if (tiers.flat().sort().join() !== [...slots].sort().join()) return "tiers hold every slot once";
      if (tiers.some((tier) => tier.length === 0)) return "no tier is empty";
      if (!ties && answer === "rank" && tiers.length !== n) return "without ties every tier has one";
      const again = new Ranking(slots, answer, ties);
      again.load(tiers);
      if (JSON.stringify(again.tiers()) !== JSON.stringify(tiers)) return "what was given can be loaded";
      const kept = new Ranking(slots, answer, ties);
      kept.restore(JSON.parse(JSON.stringify(ranking.ranks())));
      if (JSON.stringify(kept.tiers()) !== JSON.stringify(tiers)) return "a draft can be restored";
      const without = slots.filter((s) => ranking.rankOf(s) !== null)[0];
      const was = ranking.rankOf(without);
      ranking.tap(without);
      ranking.tap(without);
      if (ranking.rankOf(without) !== was) return "two taps on a picture change nothing";
    }
  }
  return null;
}
"""

_WORDS = """
async () => {
  const [english, german] = await Promise.all([import("./static/text_en.js"), import("./static/text_de.js")]);
  const holes = (text) => (text.match(/\\{\\w+\\}/g) ?? []).sort().join();
  const of = ({ TEXT }) => Object.fromEntries(Object.entries(TEXT).map(([key, text]) => [key, holes(text)]));
  return [of(english), of(german)];
}
"""

_ATTENTION = """
async () => {
  const { AttentionClock } = await import("./static/attention.js");
  let [time, state] = [0, "visible"];
  performance.now = () => time;
  Object.defineProperty(document, "visibilityState", { get: () => state });
  const turn = (to) => { state = to; document.dispatchEvent(new Event("visibilitychange")); };
  const clock = new AttentionClock();
  const read = [];
  time = 5000; read.push(clock.read());
  turn("hidden"); time = 60_000; read.push(clock.read());
  turn("visible"); time = 61_000; read.push(clock.read());
  time = 400_000; read.push(clock.read());
  document.dispatchEvent(new Event("keydown")); time = 401_000; read.push(clock.read());
  clock.restart(); time = 401_500; read.push(clock.read());
  return read;
}
"""

_BACK_OFF = """
async () => {
  const { backOff } = await import("./static/connection.js");
  return [0, 1, 2, 3, 6, 40].map((attempt) => [backOff(attempt, 0), backOff(attempt, 1)]);
}
"""


@pytest.fixture
def page(make_study, serve, open_page):
    return open_page(serve(make_study(per_participant=1, attention={"degraded": 0, "repeated": 0})).url)


def test_laws_of_a_ranking(page):
    assert page.evaluate(_RANKING_LAWS) is None


def test_every_language_says_everything(page):
    english, german = page.evaluate(_WORDS)
    assert english == german


def test_attention_is_time_seen_and_not_left_alone(page):
    # 5 s; hidden: nothing; 1 s more; left alone: two minutes and no longer; a key: it runs again; anew
    assert page.evaluate(_ATTENTION) == [5000, 5000, 6000, 125_000, 126_000, 500]


def test_tries_come_ever_later(page):
    least, most = zip(*page.evaluate(_BACK_OFF), strict=True)
    assert most == (0.5, 1, 2, 4, 30, 30)
    assert least == tuple(0.75 * seconds for seconds in most)


def test_a_german_study_is_german(make_study, serve, open_page):
    study = make_study(language="de", title="Welche Bilder sind besser?", consent="Einwilligung")
    page = open_page(serve(study).url)
    page.get_by_role("button", name="Ich willige ein und beginne").click()
    page.locator("h1", has_text="Übungsgruppe").wait_for()
    assert page.evaluate("document.documentElement.lang") == "de"
    sitter = Sitter(page)
    sitter.by_keyboard([[0], [1], [2], [3]])
    assert sitter.heading == "Gruppe 1 von 6"
