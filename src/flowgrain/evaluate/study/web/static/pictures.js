/* The grid of pictures to compare: one button a picture, moved among by arrow keys, with its rank on it. */

import { button, h, icon } from "./dom.js";
import { letterOf, t } from "./text.js";

const RETRY_FIRST_MS = 1000;
const RETRY_LONGEST_MS = 15_000;
/** A second click on the same picture within this time is the tail of a double click. */
const DOUBLE_CLICK_MS = 350;
const NEVER = { slot: null, time: -Infinity };

export class PictureGrid {
  #cards;
  #tapped = NEVER;

  /** `on`: tap(slot), zoom(index), loaded() when the last picture is there. */
  constructor(pictures, on) {
    this.on = on;
    this.#cards = pictures.map((picture, index) => this.#card(picture, letterOf(index), index));
    this.element = h(
      "ol",
      { class: "pictures", "aria-label": t("item.pictures"), dataset: { count: pictures.length } },
      ...this.#cards.map(({ element }) => element),
    );
  }

  /** Whether every picture is there to be seen. */
  get loaded() {
    return this.#cards.every(({ loaded }) => loaded);
  }

  /** Place of the picture whose button is `target`, or -1. */
  indexOf(target) {
    return this.#cards.findIndex((card) => card.picture === target);
  }

  get length() {
    return this.#cards.length;
  }

  slotAt(index) {
    return this.#cards[index].slot;
  }

  letterFor(slot) {
    return letterOf(this.#cards.findIndex((card) => card.slot === slot));
  }

  focus(index) {
    this.#cards[index].picture.focus();
  }

  /** Moves the focus from picture `index` as an arrow key says; stays at the edges. */
  move(index, key) {
    const columns = this.#columns();
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const target = index + step;
    if (target >= 0 && target < this.#cards.length) this.focus(target);
  }

  /** A new question begins: the next click is a first one. */
  forgetClick() {
    this.#tapped = NEVER;
  }

  /** Shows the ranks of `ranking`. */
  update(ranking) {
    for (const { slot, picture, name, badge } of this.#cards) {
      const rank = ranking.rankOf(slot);
      const best = ranking.answer === "best";
      picture.setAttribute("aria-pressed", String(rank !== null));
      badge.hidden = rank === null;
      badge.replaceChildren(best ? icon("check") : String(rank ?? ""));
      picture.setAttribute("aria-label", `${name}, ${rankText(ranking, slot)}`);
    }
  }

  #columns() {
    const top = this.#cards[0].element.offsetTop;
    return this.#cards.filter(({ element }) => element.offsetTop === top).length;
  }

  #card({ slot, url, width, height }, letter, index) {
    const name = t("picture.name", { letter });
    const image = h("img", { alt: name, width, height, draggable: "false" });
    const badge = h("span", { class: "badge", "aria-hidden": "true", hidden: true });
    const picture = h("button", { type: "button", class: "picture", dataset: { drag: slot } }, image);
    picture.style.aspectRatio = `${width} / ${height}`;
    picture.addEventListener("click", (event) => this.#click(slot, event));
    const zoom = button(icon("zoom"), () => this.on.zoom(index), {
      class: "tool",
      "aria-label": t("picture.zoom", { letter }),
      title: t("picture.zoom", { letter }),
    });
    const failed = h("p", { class: "picture-failed", role: "alert", hidden: true });
    const letterMark = h("span", { class: "letter", "aria-hidden": "true" }, letter);
    const element = h(
      "li",
      { class: "card" },
      picture,
      failed,
      h("div", { class: "card-foot" }, letterMark, badge, zoom),
    );
    const card = { slot, name, element, picture, badge, loaded: false };
    this.#load(card, image, failed, url);
    return card;
  }

  /** Loads a picture, again and again if need be: nobody shall judge what was not shown. */
  #load(card, image, failed, url) {
    let attempt = 0;
    let timer = null;
    const again = () => {
      clearTimeout(timer);
      attempt += 1;
      image.src = `${url}?again=${attempt}`;
    };
    image.addEventListener("load", () => {
      card.loaded = true;
      failed.hidden = true;
      if (this.loaded) this.on.loaded();
    });
    image.addEventListener("error", () => {
      if (failed.hidden)
        failed.replaceChildren(t("item.failed"), " ", button(t("item.reload"), again, { class: "quiet" }));
      failed.hidden = false;
      timer = setTimeout(again, Math.min(RETRY_LONGEST_MS, RETRY_FIRST_MS * 2 ** attempt));
    });
    image.src = url;
  }

  #click(slot, event) {
    const doubled = this.#tapped.slot === slot && event.timeStamp - this.#tapped.time < DOUBLE_CLICK_MS;
    this.#tapped = { slot, time: event.timeStamp };
    if (!doubled) this.on.tap(slot);
  }
}

/** The rank of a picture in words. */
export function rankText(ranking, slot) {
  const rank = ranking.rankOf(slot);
  if (ranking.answer === "best") return t(rank === null ? "picture.unchosen" : "picture.best");
  return rank === null ? t("picture.unranked") : t("picture.rank", { rank });
}
