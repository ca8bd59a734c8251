/* Who is taking part: the token of a link or of an earlier visit, and the ids that a recruitment page adds. */

const TOKEN = /^[A-Za-z0-9_-]{32}$/;
const EXTERNAL_ID = /^[A-Za-z0-9_-]{1,64}$/;

export class Session {
  #store;
  #external; // ids of the query: {external_id, session_id}, or null

  /** `names`: the query's parameters, as `external_id` of api/study has them; null where the study has none. */
  constructor(store, names) {
    this.#store = store;
    this.#external = names === null ? null : externalIds(names);
  }

  get token() {
    return this.#store.get("token");
  }

  /** Body of api/enter: the ids of the recruitment page, or nothing. */
  get entering() {
    return this.#external ?? {};
  }

  get hasExternalId() {
    return this.#external !== null;
  }

  /**
   * Takes the token out of the address into the store and forgets that of another participant.
   * Returns "link", "broken link", or "none" where the address holds no token.
   */
  arrive() {
    const fragment = new URLSearchParams(location.hash.slice(1)).get("p");
    if (fragment !== null) {
      // out of the address: what is on the screen or in the history is easily shared
      history.replaceState(null, "", location.pathname + location.search);
      if (!TOKEN.test(fragment)) return "broken link";
      this.remember(fragment);
      return "link";
    }
    if (this.#external !== null && this.#store.get("external") !== this.#external.external_id) this.forget();
    return "none";
  }

  remember(token) {
    this.#store.set("token", token);
    if (this.#external !== null) this.#store.set("external", this.#external.external_id);
  }

  forget() {
    for (const key of ["token", "external", "drafts"]) this.#store.remove(key);
  }

  /** The link to continue by; its token stands after the #, which browsers never send. */
  get link() {
    return `${new URL(".", location.href).href}#p=${this.token}`;
  }
}

function externalIds({ parameter, session_parameter }) {
  const query = new URLSearchParams(location.search);
  const id = query.get(parameter);
  if (id === null || !EXTERNAL_ID.test(id)) return null;
  const session = query.get(session_parameter);
  return { external_id: id, session_id: session !== null && EXTERNAL_ID.test(session) ? session : null };
}
