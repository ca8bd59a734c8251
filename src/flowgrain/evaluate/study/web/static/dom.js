/* Building the page: every text goes in as a text node, so no caption can become markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Path data of the icons, drawn in a box of 24 x 24. */
const ICONS = {
  zoom: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.3 15.3 20 20M10.5 7.8v5.4M7.8 10.5h5.4",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  left: "M14.5 5 8 12l6.5 7",
  right: "M9.5 5 16 12l-6.5 7",
  check: "M5 12.5l4.5 4.5L19 7.5",
};

/**
 * An element with properties and children.
 * `props`: class, dataset {…}, on {event: listener}; all else is an attribute (true: present, false or null: absent).
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A decorative icon; its button carries the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button; `props` as for `h`. */
export function button(label, onClick, props = {}) {
  return h("button", { type: "button", ...props, on: { ...props.on, click: onClick } }, label);
}

/** Paragraphs of a plain text in which an empty line divides them. */
export function paragraphs(text) {
  return text
    .split(/\n\s*\n/)
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map((part) => h("p", {}, part));
}

/** Text that only screen readers get. */
export function hiddenText(text) {
  return h("span", { class: "visually-hidden" }, text);
}
