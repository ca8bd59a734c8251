/* Dialogs that can be opened from every page: help, the information again, the link to continue by. */

import { button, h, paragraphs } from "./dom.js";
import { copyField } from "./pages.js";
import { t } from "./text.js";

/** Opens a dialog that is gone when closed; the browser keeps the focus inside and gives it back. */
function open(title, ...children) {
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const close = button(t("dialog.close"), () => dialog.close(), { class: "secondary" });
  const dialog = h(
    "dialog",
    { class: "paper", "aria-labelledby": "dialog-title" },
    heading,
    ...children,
    h("div", { class: "actions" }, close),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  heading.focus();
}

export function openInformation(text) {
  open(t("consent.title"), h("div", { dir: "auto" }, ...paragraphs(text)));
}

export function openLink(link) {
  open(t("link.title"), h("p", {}, t("link.text")), copyField(t("link.label"), link, t("link.copy"), "link"));
}

/** How to answer: `answer` "rank" or "best", `ties` whether ranks may be shared, `pictures` how many there are. */
export function openHelp(answer, ties, pictures) {
  const best = answer === "best" ? ".best" : "";
  const points = [t(`help.tap${best}`), t(`help.drag${best}`), ties ? t("help.ties") : "", t("help.zoom")];
  const digits = best === "" ? [`1 – ${Math.min(9, pictures)}`, t("help.key.digits")] : ["1", t("help.key.digit")];
  open(
    t("help.title"),
    h("h3", {}, t("help.pointer")),
    h("ul", { class: "points" }, ...points.filter((point) => point !== "").map((point) => h("li", {}, point))),
    h("h3", {}, t("help.keys")),
    keys([
      ["←  →  ↑  ↓", t("help.key.arrows"), t("keys.arrows")],
      digits,
      [t("keys.space"), t(`help.key.space${best}`)],
      [t("keys.backspace"), t("help.key.backspace")],
      [t("keys.enter"), t("help.key.enter")],
      ["Z", t("help.key.zoom")],
      ["?", t("help.key.help")],
    ]),
    h("h3", {}, t("help.in.zoom")),
    keys([
      ["←  →", t("help.key.flick"), t("keys.arrows")],
      ["R", t("help.key.references")],
      ["+  −  0", t("help.key.plusminus")],
      [t("keys.shift.arrows"), t("help.key.pan")],
      digits,
      [t("keys.escape"), t("help.key.escape")],
    ]),
  );
}

/** A list of keys with their meanings: [shown, meaning, what a screen reader says instead of the signs]. */
function keys(rows) {
  const row = ([shown, meaning, spoken]) => {
    const key = h("kbd", spoken === undefined ? {} : { "aria-label": spoken, role: "img" }, shown);
    return h("div", {}, h("dt", {}, key), h("dd", {}, meaning));
  };
  return h("dl", { class: "keys" }, ...rows.map(row));
}
