/* JSON over HTTP that outlives a dead server: what may be tried again is tried again, with the participant told. */

const FIRST_DELAY_S = 0.5;
const LONGEST_DELAY_S = 30;
const TIMEOUT_MS = 20_000;

/** The server understood and refused; trying again would not help. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Nothing acknowledged: no network, no server, or one that asks to come back later. */
class Unavailable extends Error {
  constructor(reason, retryAfter) {
    super(reason);
    this.reason = reason; // "offline" | "busy"
    this.retryAfter = retryAfter; // seconds, or null
  }
}

export class Connection {
  #report;
  #wakers = new Set();

  /** `report({reason, seconds})` when a request has to wait, `report(null)` when one got through. */
  constructor(report) {
    this.#report = report;
    window.addEventListener("online", () => this.retryNow());
  }

  /** The JSON answer of `path`, relative to the study; POST where a `body` is given. Throws only Refused. */
  async call(path, { token = null, body = null } = {}) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await exchange(path, token, body);
        this.#report(null);
        return answer;
      } catch (error) {
        if (!(error instanceof Unavailable)) {
          this.#report(null);
          throw error;
        }
        await this.#pause(error.retryAfter ?? backOff(attempt), error.reason);
      }
    }
  }

  /** Ends a wait before its time. */
  retryNow() {
    for (const wake of this.#wakers) wake();
  }

  async #pause(seconds, reason) {
    this.#report({ reason, seconds });
    await new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#wakers.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, seconds * 1000);
      this.#wakers.add(wake);
    });
  }
}

/** Seconds before try `attempt` + 2: doubling, with jitter so that a room of participants does not knock at once. */
export function backOff(attempt, random = Math.random()) {
  return Math.min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** Math.min(attempt, 16)) * (0.75 + 0.25 * random);
}

async function exchange(path, token, body) {
  const headers = { Accept: "application/json" };
  // not Authorization: a proxy that asks for a password of its own uses that one
  if (token !== null) headers["X-Study-Token"] = token;
  if (body !== null) headers["Content-Type"] = "application/json";
  let response;
  let answer;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? null : JSON.stringify(body),
      cache: "no-store",
      keepalive: body !== null, // an answer leaves even when the tab closes in the same moment
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    answer = await response.json();
  } catch {
    throw new Unavailable("offline", null); // no answer, or the error page of a proxy in between
  }
  if (response.ok) return answer;
  if ([408, 429].includes(response.status) || response.status >= 500) {
    const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
    throw new Unavailable(response.status === 429 ? "busy" : "offline", Number.isFinite(seconds) ? seconds : null);
  }
  throw new Refused(response.status, String(answer.error), String(answer.message));
}
