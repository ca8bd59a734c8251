/* localStorage of this study; in memory where the browser refuses it (private windows, full, switched off). */

export class Store {
  #prefix;
  #memory = new Map();

  constructor(prefix) {
    this.#prefix = prefix;
  }

  /** The value kept under `key`, or null. */
  get(key) {
    const text = this.#memory.get(key) ?? this.#read(key);
    if (text === null) return null;
    try {
      return JSON.parse(text);
    } catch {
      return null; // written by another version or by hand: as good as absent
    }
  }

  set(key, value) {
    const text = JSON.stringify(value);
    try {
      localStorage.setItem(this.#prefix + key, text);
      this.#memory.delete(key);
    } catch {
      this.#memory.set(key, text); // lasts as long as the page does
    }
  }

  remove(key) {
    this.#memory.delete(key);
    try {
      localStorage.removeItem(this.#prefix + key);
    } catch {
      // nothing was kept there
    }
  }

  #read(key) {
    try {
      return localStorage.getItem(this.#prefix + key);
    } catch {
      return null;
    }
  }
}
