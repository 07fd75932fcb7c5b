// The HTTP API and the tokens of this tab. The access token is short-lived and renewed with the
// refresh token, which changes each time; both live as long as the tab.

const KEY = "tidings.session";
// Renewed when it ends within this.
const RENEW_BEFORE_MS = 30_000;
const ANSWER_WITHIN_MS = 15_000;

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? "";
    this.retryAfter = problem.retry_after_ms ?? 0;
  }
}

export class Api {
  constructor(storage) {
    this.storage = storage;
    this.session = JSON.parse(storage.getItem(KEY) ?? "null");
    this.renewing = null;
  }

  keep(session) {
    this.session = session && {
      user: session.user, device: session.device, name: session.name,
      access: session.access_token, refresh: session.refresh_token, endsAt: Date.now() + session.expires_in * 1000,
    };
    if (session) this.storage.setItem(KEY, JSON.stringify(this.session));
    else this.storage.removeItem(KEY);
  }

  // `how` is "register" or "login".
  async signIn(how, name, password, device) {
    const answer = await this.fetch("POST", `/v1/auth/${how}`, { name, password, device });
    this.keep({ name, ...answer });
  }

  async signOut() {
    const session = this.session;
    this.keep(null);
    if (!session) return;
    // It is signed out here whether or not the server hears of it.
    await this.fetch("POST", "/v1/auth/logout", { refresh_token: session.refresh }, session.access).catch(() => {});
  }

  // The access token, renewed when it is about to end or `fresh` is asked for.
  async token(fresh = false) {
    if (!this.session) throw signedOut();
    if (!fresh && this.session.endsAt - Date.now() > RENEW_BEFORE_MS) return this.session.access;
    this.renewing ??= this.renew().finally(() => (this.renewing = null));
    await this.renewing;
    return this.session.access;
  }

  async renew() {
    const { refresh, user, name, device } = this.session;
    try {
      const answer = await this.fetch("POST", "/v1/auth/refresh", { refresh_token: refresh });
      if (!this.session) throw signedOut();
      this.keep({ user, name, device, refresh_token: refresh, ...answer });
    } catch (error) {
      if (error.status !== 401 && error.status !== 403 && error.status !== 400) throw error;
      this.keep(null);
      throw signedOut();
    }
  }

  get(path) {
    return this.asked("GET", path);
  }

  post(path, body) {
    return this.asked("POST", path, body);
  }

  async asked(method, path, body) {
    try {
      return await this.fetch(method, path, body, await this.token());
    } catch (error) {
      if (error.status !== 401) throw error;
      return this.fetch(method, path, body, await this.token(true));
    }
  }

  async fetch(method, path, body, token) {
    const headers = { accept: "application/json" };
    if (token) headers.authorization = `Bearer ${token}`;
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
    } catch {
      throw new ApiError(0, { detail: "The server cannot be reached. Please try again." });
    }
    const text = await response.text();
    let answer = {};
    try {
      answer = text ? JSON.parse(text) : {};
    } catch {
      // Not one of the server's own answers; the status says enough.
    }
    if (!response.ok) throw new ApiError(response.status, answer);
    return answer;
  }
}

function signedOut() {
  return Object.assign(new Error("Please sign in again."), { signedOut: true });
}
