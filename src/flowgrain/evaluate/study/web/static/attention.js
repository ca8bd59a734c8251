/* Time that an item had a participant's attention: the page visible, and not left alone for long. */

/** After this long without a key, a pointer or a scroll, somebody who looks is taken to have gone. */
const IDLE_MS = 120_000;
const SIGNS = ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchmove"];

export class AttentionClock {
  #total = 0;
  #since = null; // start of the span that is running
  #lastSign = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => this.#turn());
    const options = { capture: true, passive: true };
    for (const sign of SIGNS) document.addEventListener(sign, () => this.#sign(), options);
    this.restart();
  }

  /** Starts from zero, with the participant there. */
  restart() {
    this.#total = 0;
    this.#lastSign = performance.now();
    this.#since = document.visibilityState === "visible" ? this.#lastSign : null;
  }

  /** Whole milliseconds since the last start. */
  read() {
    return Math.round(this.#total + this.#span());
  }

  #span() {
    if (this.#since === null) return 0;
    return Math.max(0, Math.min(performance.now(), this.#lastSign + IDLE_MS) - this.#since);
  }

  #turn() {
    this.#total += this.#span();
    this.#since = document.visibilityState === "visible" ? performance.now() : null;
    this.#lastSign = performance.now();
  }

  #sign() {
    const now = performance.now();
    if (this.#since !== null && now - this.#lastSign > IDLE_MS) {
      this.#total += this.#span();
      this.#since = now;
    }
    this.#lastSign = now;
  }
}
