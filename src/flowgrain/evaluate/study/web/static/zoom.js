/* The large view: one picture at a time, all at the same scale and the same spot, so that details can be compared. */

import { button, h, icon } from "./dom.js";
import { t } from "./text.js";

const STEP = 1.5;
const LARGEST_PIXEL = 8; // CSS pixels that one picture pixel may fill
const PAN_PART = 0.15; // of the stage, for one key
const SWIPE_PX = 50;

export class ZoomDialog {
  #groups; // [{name, pictures: [{url, width, height, label, short}]}]
  #rankText;
  #onDigit;
  #group = 0;
  #index = [0, 0];
  #scale = 1; // 1 fits the stage
  #centre = { x: 0.5, y: 0.5 }; // of the stage, as a part of the picture
  #pointers = new Map();
  #pressedAt = null;
  #dialog;
  #stage;
  #title;
  #level;
  #tabs;
  #images;

  /**
   * `groups`: pictures to compare, then the references (may be empty).
   * `rankText(index)`: what is known of the rank of a picture to compare; `onDigit(index, digit)` gives it one.
   */
  constructor(groups, rankText, onDigit) {
    this.#groups = groups;
    this.#rankText = rankText;
    this.#onDigit = onDigit;
    this.#build();
  }

  /** Shows picture `index` of a group (0: to compare, 1: references), fitted; closing gives the focus back. */
  open(group, index) {
    this.#group = group;
    this.#index[group] = index;
    this.#scale = 1;
    this.#centre = { x: 0.5, y: 0.5 };
    this.#dialog.showModal();
    this.#show();
    this.#stage.focus();
  }

  get element() {
    return this.#dialog;
  }

  #build() {
    this.#images = this.#groups.map(({ pictures }) =>
      pictures.map(({ url, label }) => h("img", { src: url, alt: label, draggable: "false", hidden: true })),
    );
    this.#title = h("p", { class: "zoom-title", role: "status" });
    this.#level = h("output", { class: "zoom-level" });
    this.#stage = h(
      "div",
      { class: "zoom-stage", tabindex: "0", role: "group", "aria-label": t("zoom.title") },
      ...this.#images.flat(),
    );
    this.#tabs = this.#groups.map(({ pictures }, group) =>
      pictures.map(({ label, short }, index) =>
        button(short, () => this.#go(group, index), { class: "zoom-tab", "aria-label": label, title: label }),
      ),
    );
    const tools = h(
      "div",
      { class: "zoom-tools" },
      this.#tool("minus", "zoom.out", () => this.#zoom(1 / STEP)),
      this.#level,
      this.#tool("plus", "zoom.in", () => this.#zoom(STEP)),
      button(t("zoom.fit"), () => this.#fit(), { class: "quiet" }),
      this.#tool("close", "zoom.close", () => this.#dialog.close()),
    );
    const strip = h(
      "div",
      { class: "zoom-strip", role: "group", "aria-label": t("zoom.pictures") },
      this.#tool("left", "zoom.previous", () => this.#flick(-1)),
      h("div", { class: "zoom-tabs" }, ...this.#tabs.map((tabs) => h("div", { class: "zoom-group" }, ...tabs))),
      this.#tool("right", "zoom.following", () => this.#flick(1)),
    );
    this.#dialog = h(
      "dialog",
      { class: "zoom", "aria-label": t("zoom.title") },
      h("div", { class: "zoom-bar" }, this.#title, tools),
      this.#stage,
      strip,
    );
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#listenToStage();
    new ResizeObserver(() => this.#place()).observe(this.#stage);
  }

  #tool(name, key, onClick) {
    return button(icon(name), onClick, { class: "tool", "aria-label": t(key), title: t(key) });
  }

  #listenToStage() {
    const stage = this.#stage;
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    stage.addEventListener("dblclick", (event) => this.#toggle(event));
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#up(event));
    stage.addEventListener("pointercancel", (event) => this.#up(event));
    stage.addEventListener("dragstart", (event) => event.preventDefault());
  }

  get #picture() {
    return this.#groups[this.#group].pictures[this.#index[this.#group]];
  }

  #go(group, index) {
    this.#group = group;
    this.#index[group] = index;
    this.#show();
  }

  #flick(step) {
    const { length } = this.#groups[this.#group].pictures;
    this.#go(this.#group, (this.#index[this.#group] + step + length) % length);
  }

  #otherGroup() {
    const other = 1 - this.#group;
    if (this.#groups[other].pictures.length > 0) this.#go(other, this.#index[other]);
  }

  #show() {
    const index = this.#index[this.#group];
    this.#images.forEach((images, group) =>
      images.forEach((image, i) => (image.hidden = group !== this.#group || i !== index)),
    );
    this.#tabs.forEach((tabs, group) =>
      tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(group === this.#group && i === index))),
    );
    const rank = this.#group === 0 ? this.#rankText(index) : "";
    this.#title.textContent = rank === "" ? this.#picture.label : `${this.#picture.label}, ${rank}`;
    this.#place();
  }

  /** Size of the picture in CSS pixels at this scale. */
  #size(scale = this.#scale) {
    const { width, height } = this.#picture;
    const fit = Math.min(this.#stage.clientWidth / width, this.#stage.clientHeight / height);
    return { width: width * fit * scale, height: height * fit * scale };
  }

  #place() {
    if (!this.#dialog.open) return;
    const { clientWidth, clientHeight } = this.#stage;
    const { width, height } = this.#size();
    this.#centre = { x: within(this.#centre.x, clientWidth / width), y: within(this.#centre.y, clientHeight / height) };
    const { style } = this.#images[this.#group][this.#index[this.#group]];
    style.width = `${width}px`;
    style.height = `${height}px`;
    const [left, top] = [clientWidth / 2 - this.#centre.x * width, clientHeight / 2 - this.#centre.y * height];
    style.transform = `translate(${left}px, ${top}px)`;
    this.#level.textContent = t("zoom.level", { percent: Math.round((100 * width) / this.#picture.width) });
  }

  /** Scales by `factor` and keeps the spot at (x, y), pixels from the middle of the stage, where it is. */
  #zoom(factor, x = 0, y = 0) {
    const before = this.#size();
    const largest = Math.max(4, (LARGEST_PIXEL * this.#picture.width) / this.#size(1).width);
    this.#scale = Math.min(largest, Math.max(1, this.#scale * factor));
    const after = this.#size();
    this.#centre.x += x / before.width - x / after.width;
    this.#centre.y += y / before.height - y / after.height;
    this.#place();
  }

  #fit() {
    this.#scale = 1;
    this.#place();
  }

  #pan(x, y) {
    const { width, height } = this.#size();
    this.#centre.x += x / width;
    this.#centre.y += y / height;
    this.#place();
  }

  #fromMiddle(event) {
    const box = this.#stage.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  #wheel(event) {
    event.preventDefault();
    this.#zoom(1.0015 ** -event.deltaY, ...this.#fromMiddle(event));
  }

  #toggle(event) {
    if (this.#scale > 1.01) this.#fit();
    else this.#zoom(STEP * STEP, ...this.#fromMiddle(event));
  }

  #down(event) {
    this.#stage.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, event);
    this.#pressedAt = this.#pointers.size === 1 ? { x: event.clientX, y: event.clientY, scale: this.#scale } : null;
  }

  #move(event) {
    const last = this.#pointers.get(event.pointerId);
    if (last === undefined) return;
    const others = [...this.#pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
    if (others.length === 1) {
      const [other] = others;
      const spread = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      this.#zoom(spread(event) / Math.max(1, spread(last)), ...this.#fromMiddle(middle));
      this.#pan((last.clientX - event.clientX) / 2, (last.clientY - event.clientY) / 2);
    } else if (others.length === 0) this.#pan(last.clientX - event.clientX, last.clientY - event.clientY);
    this.#pointers.set(event.pointerId, event);
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    const from = this.#pressedAt;
    this.#pressedAt = null;
    // a sideways swipe over a fitted picture goes to the next one
    if (from === null || from.scale > 1.01 || event.type !== "pointerup") return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.abs(x) > SWIPE_PX && Math.abs(x) > 2 * Math.abs(y)) this.#flick(x < 0 ? 1 : -1);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (!this.#act(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Does what a key asks for; false for a key that means nothing here. */
  #act({ key, shiftKey }) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    if (step !== undefined && (shiftKey || step[0] === 0)) {
      this.#pan(step[0] * PAN_PART * this.#stage.clientWidth, step[1] * PAN_PART * this.#stage.clientHeight);
    } else if (step !== undefined) this.#flick(step[0]);
    else if (key === "+" || key === "=") this.#zoom(STEP);
    else if (key === "-" || key === "_") this.#zoom(1 / STEP);
    else if (key === "0") this.#fit();
    else if (key === "r" || key === "R") this.#otherGroup();
    else if (key === "z" || key === "Z") this.#dialog.close();
    else if (/^[1-9]$/.test(key) && this.#group === 0) {
      this.#onDigit(this.#index[0], Number(key));
      this.#show();
    } else return false;
    return true;
  }
}

/** A centre that keeps the picture over the stage; `part`: how much of it the stage shows. */
function within(centre, part) {
  return part >= 1 ? 0.5 : Math.min(1 - part / 2, Math.max(part / 2, centre));
}
