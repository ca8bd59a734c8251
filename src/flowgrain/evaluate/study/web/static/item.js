/* One item: its prompt, references and pictures, its questions one after the other, and every way to answer them. */

import { button, h } from "./dom.js";
import { Dragging } from "./drag.js";
import { brief, head, practice } from "./item_parts.js";
import { PictureGrid, rankText } from "./pictures.js";
import { Places } from "./places.js";
import { Ranking } from "./ranking.js";
import { letterOf, t } from "./text.js";
import { ZoomDialog } from "./zoom.js";

/** An item that opens answered is not sent on by the second half of a double click. */
const SETTLE_MS = 400;

export class ItemView {
  #study; // the answer of api/state
  #item;
  #on; // say(text), submit(answers) and back(answers), null where nothing changed, help(), draft(ranks)
  #rankings; // one a dimension
  #dimension = 0;
  #shownAt = performance.now();
  #grid;
  #places;
  #zoom;
  #parts = {};

  /** `draft`: ranks by dimension of an unfinished answer, or null. */
  constructor(study, item, draft, on) {
    this.#study = study;
    this.#item = item;
    this.#on = on;
    this.#rankings = this.#takeUp(draft);
    this.openedComplete = this.#rankings.every(({ complete }) => complete);
    this.#build();
    this.#ask(0);
  }

  /** Puts the focus where reading starts. */
  focus() {
    this.#parts.heading.focus();
  }

  get busy() {
    return this.element.inert;
  }

  /** Stops taking input while an answer is on its way. */
  set busy(busy) {
    this.element.inert = busy;
    this.element.setAttribute("aria-busy", String(busy));
  }

  get #ranking() {
    return this.#rankings[this.#dimension];
  }

  #takeUp(draft) {
    const { dimensions, answer, ties } = this.#study;
    const slots = this.#item.pictures.map(({ slot }) => slot);
    return dimensions.map(({ name }) => {
      const ranking = new Ranking(slots, answer, ties);
      const given = this.#item.previous_answer?.[name];
      if (given !== undefined) ranking.load(given);
      if (draft?.[name] !== undefined) ranking.restore(draft[name]);
      return ranking;
    });
  }

  #build() {
    const { pictures } = this.#item;
    this.#zoom = this.#zoomDialog();
    this.#grid = new PictureGrid(pictures, {
      tap: (slot) => this.#tap(slot),
      zoom: (index) => this.#zoom.open(0, index),
      loaded: () => this.#update(),
    });
    this.#parts.heading = h("h1", { tabindex: "-1", class: "set" });
    this.element = h(
      "div",
      { class: "item" },
      head(this.#study, this.#item, this.#parts.heading, () => this.#on.help()),
      this.#item.practice ? practice(this.#study, this.#item) : null,
      brief(this.#item, (index) => this.#zoom.open(1, index)),
      this.#question(),
      this.#grid.element,
      this.#tray(),
      h("p", { class: "legend" }, t(`legend.${this.#study.answer}`, { n: Math.min(9, pictures.length) })),
      this.#zoom.element,
    );
    this.element.addEventListener("keydown", (event) => this.#key(event));
    new Dragging(this.element, (slot, place) => this.#drop(slot, place));
  }

  #question() {
    this.#parts.eyebrow = h("p", { class: "eyebrow" });
    this.#parts.question = h("h2", { class: "question", tabindex: "-1", dir: "auto" });
    const how = h("p", { class: "how" }, t(`item.${this.#study.answer}.do`));
    const revised = this.#item.previous_answer === null ? null : h("p", { class: "how" }, t("item.answered"));
    return h("div", { class: "ask" }, this.#parts.eyebrow, this.#parts.question, how, revised);
  }

  #tray() {
    this.#parts.hint = h("p", { class: "hint" });
    this.#parts.back = button(t("item.back"), () => this.#back(), { class: "quiet" });
    this.#parts.clear = button(t("item.clear"), () => this.#clear(), { class: "quiet" });
    this.#parts.go = button("", () => this.#go(), { class: "primary" });
    this.#parts.placesSlot = h("div", { class: "tray-places" });
    const actions = h("div", { class: "actions" }, this.#parts.back, this.#parts.clear, this.#parts.go);
    const low = this.#ranking.places <= 4; // low enough to stay in sight without hiding the pictures
    return h("div", { class: low ? "tray is-low" : "tray" }, this.#parts.placesSlot, this.#parts.hint, actions);
  }

  #zoomDialog() {
    const { pictures, references } = this.#item;
    const shown = pictures.map(({ url, width, height }, index) => {
      const letter = letterOf(index);
      return { url, width, height, label: t("picture.name", { letter }), short: letter };
    });
    const real = references.map(({ url, width, height }, index) => {
      const label = t("item.reference", { n: index + 1 });
      return { url, width, height, label, short: t("item.reference.short", { n: index + 1 }) };
    });
    const slotAt = (index) => pictures[index].slot;
    return new ZoomDialog(
      [{ pictures: shown }, { pictures: real }],
      (index) => rankText(this.#ranking, slotAt(index)),
      (index, digit) => this.#give(slotAt(index), digit),
    );
  }

  /** Turns to question `dimension`. */
  #ask(dimension) {
    this.#dimension = dimension;
    this.#grid.forgetClick();
    const { dimensions } = this.#study;
    const { title, question } = dimensions[dimension];
    const count =
      dimensions.length > 1 ? `${t("item.question", { n: dimension + 1, total: dimensions.length })}: ` : "";
    this.#parts.eyebrow.textContent = count + title;
    this.#parts.question.textContent = question;
    const pictures = this.#item.pictures.map(({ slot, url }, index) => ({ slot, url, letter: letterOf(index) }));
    this.#places = new Places(pictures, this.#ranking, (rank) => this.#choose(rank));
    this.#parts.placesSlot.replaceChildren(this.#places.element);
    this.#parts.back.textContent = t(dimension > 0 ? "item.back.question" : "item.back");
    this.#parts.back.hidden = dimension === 0 && this.#item.position <= 1;
    this.#parts.go.textContent = t(this.#goKey());
    this.#update();
  }

  #goKey() {
    if (this.#dimension + 1 < this.#study.dimensions.length) return "item.next.question";
    if (this.#item.practice) return "item.finish.practice";
    return this.#item.position === this.#study.total ? "item.finish" : "item.next";
  }

  #update() {
    const ranking = this.#ranking;
    this.#grid.update(ranking);
    this.#places.update(ranking);
    this.#parts.clear.hidden = ranking.placed === 0;
    this.#parts.go.setAttribute("aria-disabled", String(!ranking.complete || !this.#grid.loaded));
    this.#parts.hint.textContent = this.#hint();
    this.#parts.hint.classList.remove("is-warning");
  }

  #hint() {
    const ranking = this.#ranking;
    if (!this.#grid.loaded) return t("item.loading");
    const shared = Array.from({ length: ranking.places }, (_, index) => ranking.at(index + 1)).filter(
      (slots) => slots.length > 1,
    );
    return shared.length === 0
      ? ""
      : t("item.tie", { names: shared.map((slots) => this.#letters(slots, " = ")).join(", ") });
  }

  #letters(slots, glue = ", ") {
    return slots.map((slot) => this.#grid.letterFor(slot)).join(glue);
  }

  #changed(say) {
    this.#update();
    this.#on.say(this.#ranking.complete && this.#ranking.answer === "rank" ? `${say} ${t("say.complete")}` : say);
    this.#on.draft(
      Object.fromEntries(this.#study.dimensions.map(({ name }, index) => [name, this.#rankings[index].ranks()])),
    );
  }

  /** What to say of a picture that has just got or lost its rank. */
  #sayRank(slot) {
    const ranking = this.#ranking;
    const letter = this.#grid.letterFor(slot);
    const rank = ranking.rankOf(slot);
    if (rank === null) return t("say.removed", { letter });
    if (ranking.answer === "best") return t("say.chosen", { letter });
    const others = this.#letters(ranking.at(rank).filter((other) => other !== slot));
    return t(others === "" ? "say.placed" : "say.tied", {
      letter,
      rank,
      others,
      placed: ranking.placed,
      total: this.#grid.length,
    });
  }

  #tap(slot) {
    this.#ranking.tap(slot);
    this.#changed(this.#sayRank(slot));
  }

  #give(slot, rank) {
    if (rank > this.#ranking.places) {
      this.#on.say(t("say.no.rank", { n: this.#ranking.places }));
      return;
    }
    this.#ranking.place(slot, rank);
    this.#changed(this.#sayRank(slot));
  }

  #take(slot) {
    if (this.#ranking.rankOf(slot) === null) return;
    this.#ranking.remove(slot);
    this.#changed(this.#sayRank(slot));
  }

  #drop(slot, place) {
    if (place !== null) this.#give(slot, Number(place));
    else this.#take(slot);
  }

  #choose(rank) {
    this.#ranking.choose(rank);
    this.#update();
    this.#on.say(t("say.choose", { rank }));
  }

  #clear() {
    this.#ranking.clear();
    this.#changed(t("say.cleared"));
    this.#grid.focus(0);
  }

  #back() {
    if (this.#dimension > 0) this.#turn(this.#dimension - 1);
    else {
      // a changed answer is kept on the way back too; a first one only by going on
      const revised = this.#item.previous_answer !== null && this.#rankings.every(({ complete }) => complete);
      this.#on.back(revised ? this.#changes : null);
    }
  }

  #turn(dimension) {
    this.#ask(dimension);
    this.#parts.question.focus();
  }

  #go() {
    if (this.openedComplete && performance.now() - this.#shownAt < SETTLE_MS) return;
    const ranking = this.#ranking;
    if (!this.#grid.loaded) this.#warn(t("item.loading"));
    else if (!ranking.complete)
      this.#warn(
        ranking.answer === "best"
          ? t("item.missing.best")
          : t("item.missing", { names: this.#letters(ranking.missing) }),
      );
    else if (this.#dimension + 1 < this.#study.dimensions.length) this.#turn(this.#dimension + 1);
    else this.#on.submit(this.#changes);
  }

  #warn(text) {
    this.#parts.hint.textContent = text;
    this.#parts.hint.classList.add("is-warning");
    this.#on.say(text);
  }

  /** The answers, or null where they are those that were given before. */
  get #changes() {
    const names = this.#study.dimensions.map(({ name }) => name);
    const answers = Object.fromEntries(names.map((name, index) => [name, this.#rankings[index].tiers()]));
    const before = this.#item.previous_answer;
    return before === null || names.some((name) => !sameTiers(before[name], answers[name])) ? answers : null;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog") !== null) return;
    const index = this.#grid.indexOf(event.target);
    const handled = index >= 0 ? this.#pictureKey(event, index) : this.#otherKey(event);
    if (handled) event.preventDefault();
  }

  /** A key on picture `index`; false for one that means nothing here. */
  #pictureKey({ key, repeat, shiftKey }, index) {
    const slot = this.#grid.slotAt(index);
    if (key.startsWith("Arrow") && !shiftKey) this.#grid.move(index, key);
    else if (/^[1-9]$/.test(key)) this.#give(slot, Number(key));
    else if (key === "Backspace" || key === "Delete") this.#take(slot);
    else if (key === "Enter") {
      if (!repeat) this.#go();
    } else if (key === "z" || key === "Z") this.#zoom.open(0, index);
    else if (key === "?") this.#on.help();
    else return false;
    return true;
  }

  /** A key elsewhere in the item. */
  #otherKey({ key, repeat, target }) {
    const button = target.closest("button");
    if (key === "ArrowRight" || key === "ArrowLeft") this.#grid.focus(key === "ArrowRight" ? 0 : this.#grid.length - 1);
    else if (key === "?") this.#on.help();
    else if (key === "Enter" && button === null) {
      if (!repeat) this.#go();
    } else if ((key === "z" || key === "Z") && button !== null && button.matches(".reference")) button.click();
    else if (/^[1-9]$/.test(key)) this.#on.say(t("say.focus.first"));
    else return false;
    return true;
  }
}

/** Whether two answers say the same; the order within a tier says nothing. */
function sameTiers(a, b) {
  const canonical = (tiers) => JSON.stringify(tiers.map((tier) => [...tier].sort()));
  return a !== undefined && canonical(a) === canonical(b);
}
