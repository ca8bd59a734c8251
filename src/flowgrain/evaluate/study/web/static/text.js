/* Words by key, in the language of the page. */

import { TEXT as german } from "./text_de.js";
import { TEXT as english } from "./text_en.js";

const LANGUAGES = { en: english, de: german };
const words = LANGUAGES[document.documentElement.lang] ?? english;

/** The text of `key` with each {name} replaced by `values[name]`. */
export function t(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** "A", "B", ... for the place of a picture. */
export function letterOf(index) {
  return String.fromCharCode(65 + index);
}
