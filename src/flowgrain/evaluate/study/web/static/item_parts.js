/* The parts of an item that do not change while it is answered. */

import { button, h, hiddenText } from "./dom.js";
import { t } from "./text.js";

/** Title, place in the study, progress and help; `heading` gets its text. */
export function head({ total, answered, title }, { position, practice }, heading, onHelp) {
  heading.textContent = practice ? t("item.practice") : t("item.set", { position, total });
  const label = t("item.progress", { answered, total });
  return h(
    "div",
    { class: "item-head" },
    h("div", { class: "where" }, h("p", { class: "study-title" }, title), heading),
    h(
      "div",
      { class: "progress" },
      h("progress", { max: total, value: answered, "aria-label": label }),
      h("p", { class: "progress-text", "aria-hidden": "true" }, label),
    ),
    button(t("menu.help"), onHelp, { class: "quiet", "aria-haspopup": "dialog" }),
  );
}

/** What a practice item explains. */
export function practice({ answer, ties }, { pictures }) {
  const n = Math.min(9, pictures.length);
  const way = (name) =>
    h(
      "li",
      { class: `way way-${name}` },
      h("b", {}, t(`practice.${name}`)),
      " ",
      t(`practice.${name}.${answer}`, { n }),
    );
  return h(
    "aside",
    { class: "practice", "aria-labelledby": "practice-title" },
    h("h2", { id: "practice-title" }, t("practice.title")),
    h("p", {}, t("practice.counts")),
    h("ul", { class: "ways" }, ...["tap", "drag", "keys"].map(way)),
    h("p", {}, ties ? `${t("practice.ties")} ${t("practice.zoom")}` : t("practice.zoom")),
  );
}

/** The prompt with its references; `onReference(index)` opens one in large. */
export function brief({ prompt, dataset, references }, onReference) {
  const text = h(
    "div",
    { class: "brief-text" },
    h("h2", { class: "eyebrow" }, t("item.prompt")),
    h("p", { class: "prompt", dir: "auto" }, prompt),
    dataset === "" ? null : h("p", { class: "dataset", dir: "auto" }, hiddenText(`${t("item.dataset")}: `), dataset),
  );
  if (references.length === 0) return h("section", { class: "brief" }, text);
  const items = references.map(({ url, width, height }, index) => {
    const n = index + 1;
    const image = h("img", { src: url, width, height, alt: t("item.reference", { n }), draggable: "false" });
    return h(
      "li",
      {},
      button(image, () => onReference(index), { class: "reference", "aria-label": t("reference.zoom", { n }) }),
    );
  });
  return h(
    "section",
    { class: "brief" },
    text,
    h(
      "div",
      { class: "brief-references" },
      h("h2", { class: "eyebrow" }, t("item.references")),
      h("ul", { class: "references" }, ...items),
    ),
  );
}
