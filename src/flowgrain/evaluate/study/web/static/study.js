/*
 * The study, from the link to the completion code.
 * State lives on the server; the browser keeps the token, unfinished answers and those not acknowledged yet.
 */

import { AttentionClock } from "./attention.js";
import { Connection, Refused } from "./connection.js";
import { openHelp, openInformation, openLink } from "./dialogs.js";
import { ItemView } from "./item.js";
import { Outbox } from "./outbox.js";
import * as pages from "./pages.js";
import { Session } from "./session.js";
import { Shell } from "./shell.js";
import { Store } from "./store.js";
import { t } from "./text.js";

/** Pages for refusals that have words of their own. */
const FAILURES = { closed: "closed", full: "full", already_started: "started", bad_token: "link" };

class Study {
  #shell = new Shell(() => this.#connection.retryNow());
  #connection = new Connection((wait) => this.#connected(wait));
  #clock = new AttentionClock();
  #info; // api/study
  #state; // api/state
  #store;
  #outbox;
  #session;

  async run() {
    this.#info = await this.#connection.call("api/study");
    document.title = this.#info.title;
    this.#store = new Store(`flowgrain-study:${new URL(".", location.href).pathname}:${this.#info.id}:`);
    this.#outbox = new Outbox(this.#store, this.#connection);
    this.#session = new Session(this.#store, this.#info.external_id);
    window.addEventListener("hashchange", () => location.reload());
    window.addEventListener("beforeunload", (event) => {
      if (this.#outbox.entries.length > 0) event.preventDefault();
    });
    await this.#open();
  }

  /** Runs an action of the participant; what the server refuses becomes a page. */
  async #attempt(action) {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#failed(error);
    }
  }

  async #open() {
    const arrival = this.#session.arrive();
    if (arrival === "broken link") {
      this.#shell.show(pages.failure("link", null, null));
      return;
    }
    try {
      await this.#outbox.flush();
    } catch (error) {
      // an answer of another time, refused: what matters of it, the next request says too
      if (!(error instanceof Refused)) throw error;
    }
    if (this.#session.token === null) {
      this.#welcome(null);
      return;
    }
    try {
      await this.#resume();
    } catch (error) {
      if (!(error instanceof Refused) || error.code !== "bad_token") throw error;
      this.#session.forget();
      if (arrival === "link") this.#shell.show(pages.failure("link", null, null));
      else this.#welcome(t("error.session"));
    }
  }

  /** The first page of somebody whom the server does not know yet. */
  #welcome(notice) {
    const { entry, closed, full } = this.#info;
    this.#shell.menu([]);
    const refusal = closed
      ? "closed"
      : full && !this.#session.hasExternalId
        ? "full"
        : entry === "links"
          ? "need.link"
          : null;
    if (refusal !== null) this.#shell.show(pages.failure(refusal, null, null));
    else if (entry === "external_id" && !this.#session.hasExternalId)
      this.#shell.show(pages.failure("need.id", null, null));
    else
      this.#shell.show(
        pages.introduction(
          this.#info,
          notice,
          "consent.agree",
          once(() => this.#attempt(() => this.#enter())),
        ),
      );
  }

  async #enter() {
    const { token } = await this.#connection.call("api/enter", { body: this.#session.entering });
    this.#session.remember(token);
    await this.#agree(this.#info.consent.sha256);
  }

  async #agree(sha256) {
    try {
      await this.#call("api/consent", { sha256 });
    } catch (error) {
      if (!(error instanceof Refused) || error.code !== "consent_changed") throw error;
      await this.#resume(t("consent.changed"));
      return;
    }
    await this.#resume();
  }

  /** Goes to where the participant is. */
  async #resume(notice = null) {
    this.#state = await this.#call("api/state");
    this.#menu();
    const { step, item, consent } = this.#state;
    if (step === "consent") {
      const study = { ...this.#info, ...this.#state };
      const agree = once(() => this.#attempt(() => this.#agree(consent.sha256)));
      this.#shell.show(pages.introduction(study, notice, "consent.continue", agree));
    } else if (step === "done") await this.#finish();
    else this.#show(item);
  }

  async #finish() {
    const done = await this.#call("api/done");
    this.#shell.show(pages.done(done, () => this.#attempt(() => this.#visit(this.#state.total))));
  }

  #show(item) {
    const { answer, ties } = this.#state;
    const view = new ItemView(this.#state, item, this.#drafts[item.key] ?? null, {
      say: (text) => this.#shell.say(text),
      help: () => openHelp(answer, ties, item.pictures.length),
      draft: (ranks) => this.#store.set("drafts", { ...this.#drafts, [item.key]: ranks }),
      back: (revised) => this.#attempt(() => this.#leave(view, item, revised, () => this.#visit(item.position - 1))),
      submit: (answers) => this.#attempt(() => this.#leave(view, item, answers, () => this.#onward(item.position))),
    });
    this.#shell.show(view.element);
    this.#clock.restart();
    for (const url of item.preload) new Image().src = url;
  }

  async #visit(position) {
    this.#show(await this.#call(`api/items/${position}`));
  }

  /** Unfinished answers: ranks by dimension, by key of the item. */
  get #drafts() {
    return this.#store.get("drafts") ?? {};
  }

  /** Sends `answers`, if there are any, and goes on once they are acknowledged. */
  async #leave(view, item, answers, go) {
    if (view.busy) return;
    view.busy = true;
    if (answers !== null) {
      const body = { item: item.key, answers, active_ms: this.#clock.read(), client_answer_id: randomId() };
      this.#outbox.add({ token: this.#session.token, body });
      this.#shell.busy("status.saving");
      await this.#outbox.flush();
      const drafts = this.#drafts;
      delete drafts[item.key];
      this.#store.set("drafts", drafts);
    }
    await go();
  }

  /** From item `position` to the next one. */
  async #onward(position) {
    this.#state = await this.#call("api/state");
    const { step, total } = this.#state;
    const first = step === "done" ? total + 1 : this.#state.position;
    if (position + 1 < first && position < total) await this.#visit(position + 1);
    else if (step === "done") await this.#finish();
    else this.#show(this.#state.item);
  }

  #failed(refusal) {
    const name = FAILURES[refusal.code] ?? "";
    if (refusal.code === "bad_token") this.#session.forget();
    if (name !== "") this.#shell.menu([]);
    this.#shell.show(pages.failure(name, name === "" ? refusal.message : null, () => location.reload()));
  }

  #call(path, body = null) {
    return this.#connection.call(path, { token: this.#session.token, body });
  }

  #connected(wait) {
    if (wait === null) this.#shell.calm();
    else {
      const kept = this.#outbox !== undefined && this.#outbox.entries.length > 0 ? ".answer" : "";
      this.#shell.wait(`status.${wait.reason}${kept}`, wait.seconds);
    }
  }

  #menu() {
    this.#shell.menu([
      [t("menu.information"), () => openInformation(this.#state.consent.text)],
      [t("menu.link"), () => openLink(this.#session.link)],
      [t("menu.withdraw"), () => this.#askToWithdraw()],
    ]);
  }

  #askToWithdraw() {
    const confirm = once(() => this.#attempt(() => this.#withdraw()));
    this.#shell.show(pages.withdraw(confirm, () => this.#attempt(() => this.#resume())));
  }

  async #withdraw() {
    const { kept } = await this.#call("api/withdraw", { confirm: true });
    this.#outbox.clear();
    this.#session.forget();
    this.#shell.menu([]);
    this.#shell.show(pages.withdrawn(kept));
  }
}

/** `action`, but not again before it has ended: a double click does once what a click does. */
function once(action) {
  let running = false;
  return async () => {
    if (running) return;
    running = true;
    await action().finally(() => (running = false));
  };
}

/** An id for one submission; crypto.randomUUID exists on secure pages only. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

new Study().run().catch((error) => {
  document.getElementById("page").replaceChildren(pages.failure("", null, () => location.reload()));
  throw error;
});
