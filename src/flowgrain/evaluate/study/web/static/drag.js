/* Dragging pictures with pointer events. A finger holds for a moment first, so that pictures never catch a scroll. */

import { h } from "./dom.js";

const MOUSE_SLACK_PX = 6;
const HOLD_MS = 250;
const HOLD_SLACK_PX = 10;

/**
 * Lets pictures inside `root` be dragged to targets inside it.
 * `[data-drag=SLOT]` can be dragged, `[data-drop=NAME]` takes drops.
 * `onDrop(slot, name)` tells; the name is null outside of all targets.
 */
export class Dragging {
  #root;
  #onDrop;
  #press = null; // {slot, source, pointer, x, y, hold}: a button is down, nothing is dragged yet
  #drag = null; // {slot, source, pointer, ghost, target}
  #justEnded = false;

  constructor(root, onDrop) {
    this.#root = root;
    this.#onDrop = onDrop;
    root.addEventListener("pointerdown", (event) => this.#down(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    root.addEventListener("pointerup", (event) => this.#up(event));
    root.addEventListener("pointercancel", (event) => this.#cancel(event));
    root.addEventListener("dragstart", (event) => event.preventDefault());
    root.addEventListener("keydown", (event) => this.#key(event), true);
    // a drag that ends on a button must not press it too
    root.addEventListener("click", (event) => this.#swallow(event), true);
    // not passive: while a finger drags, the page stays where it is
    root.addEventListener("touchmove", (event) => this.#holdPage(event), { passive: false });
    root.addEventListener("contextmenu", (event) => this.#noMenu(event));
  }

  #down(event) {
    const source = event.target.closest("[data-drag]");
    if (source === null || event.button !== 0 || !event.isPrimary || this.#drag !== null) return;
    const press = { slot: source.dataset.drag, source, pointer: event.pointerId, x: event.clientX, y: event.clientY };
    const held = event.pointerType === "touch";
    this.#press = { ...press, held, hold: held ? setTimeout(() => this.#begin(press), HOLD_MS) : null };
  }

  #move(event) {
    if (this.#drag !== null && event.pointerId === this.#drag.pointer) {
      this.#follow(event.clientX, event.clientY);
      return;
    }
    const press = this.#press;
    if (press === null || event.pointerId !== press.pointer) return;
    const moved = Math.hypot(event.clientX - press.x, event.clientY - press.y);
    if (press.held && moved > HOLD_SLACK_PX) this.#release();
    else if (!press.held && moved > MOUSE_SLACK_PX) {
      this.#begin(press);
      this.#follow(event.clientX, event.clientY);
    }
  }

  #begin({ slot, source, pointer, x, y }) {
    this.#release();
    const box = source.getBoundingClientRect();
    const picture = source.querySelector("img").cloneNode();
    const ghost = h("div", { class: "ghost", "aria-hidden": "true" }, picture);
    const width = Math.min(box.width, 160);
    ghost.style.width = `${width}px`;
    document.body.append(ghost);
    this.#drag = { slot, source, pointer, ghost, target: null };
    this.#root.setPointerCapture(pointer);
    this.#root.classList.add("dragging");
    source.classList.add("dragged");
    this.#follow(x, y);
  }

  #follow(x, y) {
    const drag = this.#drag;
    drag.ghost.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%)`;
    const under = document.elementFromPoint(x, y);
    const target = under === null ? null : under.closest("[data-drop]");
    if (target === drag.target) return;
    if (drag.target !== null) drag.target.classList.remove("drop-here");
    if (target !== null) target.classList.add("drop-here");
    drag.target = target;
  }

  #up(event) {
    this.#release();
    const drag = this.#drag;
    if (drag === null || event.pointerId !== drag.pointer) return;
    this.#follow(event.clientX, event.clientY);
    const { slot, target } = drag;
    this.#finish();
    this.#justEnded = true; // the click of the same release follows before any timer
    setTimeout(() => (this.#justEnded = false), 0);
    this.#onDrop(slot, target === null ? null : target.dataset.drop);
  }

  #cancel(event) {
    this.#release();
    if (this.#drag !== null && event.pointerId === this.#drag.pointer) this.#finish();
  }

  #key(event) {
    if (event.key !== "Escape" || this.#drag === null) return;
    event.stopPropagation();
    this.#finish();
  }

  #finish() {
    const { source, ghost, target, pointer } = this.#drag;
    ghost.remove();
    source.classList.remove("dragged");
    if (target !== null) target.classList.remove("drop-here");
    this.#root.classList.remove("dragging");
    if (this.#root.hasPointerCapture(pointer)) this.#root.releasePointerCapture(pointer);
    this.#drag = null;
  }

  #release() {
    if (this.#press === null) return;
    clearTimeout(this.#press.hold);
    this.#press = null;
  }

  #swallow(event) {
    if (this.#drag === null && !this.#justEnded) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #holdPage(event) {
    if (this.#drag !== null) event.preventDefault();
  }

  #noMenu(event) {
    if (this.#drag !== null || (this.#press !== null && this.#press.held)) event.preventDefault();
  }
}
