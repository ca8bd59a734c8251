/* The frame of every page: the line that tells of the connection, the page itself, the menu, and what is read aloud. */

import { button, h } from "./dom.js";
import { t } from "./text.js";

/** A wait shorter than this is not worth a word. */
const PATIENCE_MS = 500;

export class Shell {
  #main = document.getElementById("page");
  #announcer = h("div", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  #message = h("span");
  #countdown = h("span");
  #retry;
  #banner;
  #footer = h("footer", { class: "footer" });
  #timer = null;

  /** `onRetry`: somebody does not want to wait. */
  constructor(onRetry) {
    this.#retry = button(t("status.retry"), onRetry, { class: "secondary" });
    this.#banner = h(
      "div",
      { class: "banner", hidden: true },
      h("p", {}, this.#message, " ", this.#countdown),
      this.#retry,
    );
    this.#main.before(this.#banner);
    this.#main.after(this.#footer, this.#announcer);
  }

  /** Replaces the page and puts the focus on its heading, so that keys and screen readers start there. */
  show(page) {
    this.#main.replaceChildren(page);
    window.scrollTo(0, 0);
    page.querySelector("h1").focus({ preventScroll: true });
  }

  /** Has a screen reader say `text`. */
  say(text) {
    this.#announcer.textContent = text;
  }

  /** Shows a message with a countdown of `seconds` until the next try. */
  wait(key, seconds) {
    const repeated = !this.#banner.hidden && this.#message.textContent === t(key);
    this.calm();
    this.#tell(key, !repeated); // read aloud once, not with every try
    this.#retry.hidden = false;
    const end = performance.now() + seconds * 1000;
    const tick = () => {
      const left = Math.max(0, Math.ceil((end - performance.now()) / 1000));
      this.#countdown.textContent = t("status.countdown", { seconds: left });
    };
    tick();
    this.#timer = setInterval(tick, 1000);
  }

  /** Says that something is under way, once it takes long enough to be noticed. */
  busy(key) {
    this.calm();
    this.#timer = setTimeout(() => this.#tell(key, true), PATIENCE_MS);
  }

  /** All is well again. */
  calm() {
    clearTimeout(this.#timer);
    clearInterval(this.#timer);
    this.#banner.hidden = true;
    this.#retry.hidden = true;
    this.#countdown.textContent = "";
  }

  #tell(key, aloud) {
    this.#message.textContent = t(key);
    this.#banner.hidden = false;
    if (aloud) this.say(t(key));
  }

  /** The menu: `items` are pairs of label and action. */
  menu(items) {
    if (items.length === 0) this.#footer.replaceChildren();
    else
      this.#footer.replaceChildren(
        h(
          "nav",
          { "aria-label": t("menu.label") },
          ...items.map(([label, act]) => button(label, act, { class: "link" })),
        ),
      );
  }
}
