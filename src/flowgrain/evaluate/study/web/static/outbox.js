/* Answers that no server has acknowledged yet: kept in the browser, sent in order, removed once acknowledged. */

import { Refused } from "./connection.js";

export class Outbox {
  #store;
  #connection;
  #sending = null;

  constructor(store, connection) {
    this.#store = store;
    this.#connection = connection;
  }

  /** Answers that wait, oldest first. */
  get entries() {
    const kept = this.#store.get("outbox");
    return Array.isArray(kept) ? kept : [];
  }

  /** Keeps an answer `{token, body}`; the id in its body makes sending it twice harmless. */
  add(entry) {
    this.#store.set("outbox", [...this.entries, entry]);
  }

  clear() {
    this.#store.remove("outbox");
  }

  /** Sends all that waits, and resolves when nothing does. Throws the first Refused; what was refused is not kept. */
  flush() {
    this.#sending ??= this.#send().finally(() => {
      this.#sending = null;
    });
    return this.#sending;
  }

  async #send() {
    let refusal = null;
    for (let [entry] = this.entries; entry !== undefined; [entry] = this.entries) {
      try {
        await this.#connection.call("api/answer", { token: entry.token, body: entry.body });
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        refusal ??= error;
      }
      this.#remove(entry.body.client_answer_id);
    }
    if (refusal !== null) throw refusal;
  }

  #remove(id) {
    const others = this.entries.filter((entry) => entry.body.client_answer_id !== id); // another tab may have added one
    if (others.length === 0) this.clear();
    else this.#store.set("outbox", others);
  }
}
