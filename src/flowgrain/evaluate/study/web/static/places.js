/* The row of ranks below the pictures: what has which rank, where to drop, and which rank a tap gives next. */

import { button, h } from "./dom.js";
import { t } from "./text.js";

export class Places {
  #pictures; // Map slot -> {url, letter}
  #places;

  /** `pictures`: {slot, url, letter} in order; `onChoose(rank)`: that rank shall be given next. */
  constructor(pictures, ranking, onChoose) {
    this.#pictures = new Map(pictures.map((picture) => [picture.slot, picture]));
    this.#places = Array.from({ length: ranking.places }, (_, index) => this.#place(index + 1, ranking, onChoose));
    const best = ranking.answer === "best";
    this.element = h(
      "ol",
      { class: "places", "aria-label": t(best ? "item.choice" : "item.ranks"), dataset: { count: ranking.places } },
      ...this.#places.map(({ element }) => element),
    );
  }

  /** Shows what lies where in `ranking`. */
  update(ranking) {
    for (const { rank, element, choose, name, thumbs, next } of this.#places) {
      const slots = ranking.at(rank);
      const isNext = ranking.next === rank;
      element.classList.toggle("is-next", isNext);
      next.hidden = !isNext || slots.length > 0;
      thumbs.replaceChildren(...slots.map((slot) => this.#thumb(slot)));
      const letters = slots.map((slot) => t("picture.name", { letter: this.#pictures.get(slot).letter })).join(", ");
      const parts = [`${name}: ${letters || t("place.empty")}`, isNext ? t("place.next.long") : ""];
      choose.setAttribute("aria-label", parts.filter((part) => part !== "").join("; "));
      choose.setAttribute("aria-pressed", String(isNext));
    }
  }

  #place(rank, ranking, onChoose) {
    const best = ranking.answer === "best";
    const edge = rank === 1 ? t("place.first") : rank === ranking.places ? t("place.last") : "";
    const name = best ? t("place.best") : [t("place.rank", { rank }), edge].filter((part) => part !== "").join(", ");
    const choose = button("", () => onChoose(rank), { class: "place-choose" });
    const next = h("span", { class: "place-next" }, t("place.next"));
    const thumbs = h("span", { class: "thumbs", on: { click: () => onChoose(rank) } });
    const label = best
      ? h("span", { class: "place-label" }, t("place.best"))
      : h("span", { class: "place-label" }, h("b", {}, String(rank)), edge === "" ? null : ` ${edge}`);
    label.setAttribute("aria-hidden", "true");
    next.setAttribute("aria-hidden", "true");
    thumbs.setAttribute("aria-hidden", "true");
    const element = h("li", { class: "place", dataset: { drop: rank } }, choose, label, next, thumbs);
    return { rank, element, choose, name, thumbs, next };
  }

  #thumb(slot) {
    const { url, letter } = this.#pictures.get(slot);
    return h(
      "span",
      { class: "thumb", dataset: { drag: slot } },
      h("img", { src: url, alt: "", draggable: "false" }),
      h("span", { class: "thumb-letter" }, letter),
    );
  }
}
