/* The pages around the items: information and consent, the end, withdrawing, and what can go wrong. */

import { button, h, paragraphs } from "./dom.js";
import { t } from "./text.js";

/** Sentences of the server are in English, whatever the page is in. */
const SERVER_LANGUAGE = "en";

/** A page of text; its heading takes the focus when the page is shown. */
function sheet(title, ...children) {
  return h("div", { class: "sheet" }, h("h1", { tabindex: "-1" }, title), ...children);
}

/** The first page. `study`: title, consent, answer, pictures, references, total, minutes; `notice` may be null. */
export function introduction(study, notice, agreeKey, onAgree) {
  const { title, consent, answer, pictures, references, total, minutes } = study;
  const points = [
    t(`intro.${answer}`, { pictures }),
    references ? t("intro.references") : null,
    t("intro.blind"),
    t("intro.size", { total, minutes }),
    t("intro.pause"),
  ];
  return sheet(
    title,
    notice === null ? null : h("p", { class: "notice" }, notice),
    h("h2", {}, t("intro.title")),
    h("ul", { class: "points" }, ...points.filter((point) => point !== null).map((point) => h("li", {}, point))),
    h("h2", {}, t("consent.title")),
    h("div", { class: "consent", dir: "auto" }, ...paragraphs(consent.text)),
    h("div", { class: "actions" }, button(t(agreeKey), onAgree, { class: "primary" })),
  );
}

/** The last page: the completion code, and the way back to where a participant came from. */
export function done({ completion_code: code, redirect_url: url }, onReview) {
  const page = sheet(
    t("done.title"),
    h("p", {}, t("done.text")),
    copyField(t("done.code"), code, t("done.copy"), "code"),
  );
  const back = url === null ? null : webAddress(url);
  if (back !== null) {
    const link = h(
      "a",
      { class: "button primary", href: back.href, rel: "noreferrer" },
      t("done.return", { host: back.host }),
    );
    page.append(h("p", {}, t("done.return.text")), h("div", { class: "actions" }, link));
  }
  page.append(h("p", {}, button(t("done.review"), onReview, { class: "quiet" })));
  return page;
}

export function withdraw(onConfirm, onCancel) {
  return sheet(
    t("withdraw.title"),
    h("p", {}, t("withdraw.text")),
    h("p", {}, t("withdraw.pause")),
    h(
      "div",
      { class: "actions" },
      button(t("withdraw.cancel"), onCancel, { class: "primary" }),
      button(t("withdraw.confirm"), onConfirm, { class: "danger" }),
    ),
  );
}

export function withdrawn(kept) {
  return sheet(t("withdrawn.title"), h("p", { lang: SERVER_LANGUAGE }, kept), h("p", {}, t("withdrawn.text")));
}

/** `name` of the error in text_*.js; `detail`: the server's sentence, or null; `onAgain` adds a button, or is null. */
export function failure(name, detail, onAgain) {
  const prefix = name === "" ? "error" : `error.${name}`;
  return sheet(
    t(`${prefix}.title`),
    name === "" ? null : h("p", {}, t(`${prefix}.text`)),
    detail === null ? null : h("p", { class: "detail", lang: SERVER_LANGUAGE }, detail),
    onAgain === null ? null : h("div", { class: "actions" }, button(t("error.again"), onAgain, { class: "primary" })),
  );
}

/** A line of text with a button that copies it. */
export function copyField(label, value, copyLabel, name) {
  const field = h("input", {
    class: "copy-value",
    id: `copy-${name}`,
    readonly: true,
    spellcheck: "false",
    autocomplete: "off",
  });
  field.value = value;
  const said = h("p", { class: "copy-said", role: "status" });
  const copy = button(
    copyLabel,
    async () => (said.textContent = t((await copied(field)) ? "copy.done" : "copy.failed")),
    { class: "secondary" },
  );
  return h(
    "div",
    { class: `copy copy-${name}` },
    h("label", { for: field.id }, label),
    h("div", { class: "copy-row" }, field, copy),
    said,
  );
}

async function copied(field) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch {
    return document.execCommand("copy"); // pages without https have no clipboard object
  }
}

/** The address, unless it is something that a link must not lead to. */
function webAddress(text) {
  try {
    const url = new URL(text);
    return ["https:", "http:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}
