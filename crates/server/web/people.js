// Names and presence of other users, and who is in which conversation.

const NAMES_AT_ONCE = 50;
const GATHER_MS = 50;
const RETRY_MS = 5_000;
const WATCH_MAX = 1_000;
const PAGES_MAX = 100;

export class People {
  constructor(api, changed) {
    Object.assign(this, { api, changed, names: new Map(), presence: new Map(), wanted: new Set(), timer: null, watched: "" });
  }

  name(user) {
    return this.names.get(user) ?? "…";
  }

  // Asks for the names that aren't known, many at once.
  need(users) {
    for (const user of users) if (user && !this.names.has(user)) this.wanted.add(user);
    if (this.wanted.size && !this.timer) this.timer = setTimeout(() => this.load(), GATHER_MS);
  }

  async load() {
    const ids = [...this.wanted].slice(0, NAMES_AT_ONCE);
    let again = GATHER_MS;
    try {
      const { users = [] } = await this.api.get(`/v1/users?ids=${ids.join(",")}`);
      for (const user of users) this.keep(user);
      for (const id of ids) {
        this.wanted.delete(id);
        if (!this.names.has(id)) this.names.set(id, "Somebody");
      }
    } catch {
      again = RETRY_MS;
    }
    this.timer = this.wanted.size && this.api.session ? setTimeout(() => this.load(), again) : null;
    this.changed();
  }

  keep(user) {
    this.names.set(user.id, user.display_name || user.name);
  }

  async find(name) {
    const { users = [] } = await this.api.post("/v1/users/search", { name });
    if (!users.length) throw new Error(`Nobody here is called “${name}”.`);
    this.keep(users[0]);
    return users[0];
  }

  // Every conversation of the user, page by page.
  async *conversations() {
    let after = "";
    for (let page = 0; page < PAGES_MAX; page++) {
      const { conversations = [], next } = await this.api.get(`/v1/conversations?limit=100${after && `&after=${after}`}`);
      for (const conversation of conversations) {
        for (const member of conversation.members ?? []) this.keep({ id: member.user, name: member.name });
        yield conversation;
      }
      if (!next) return;
      after = next;
    }
  }

  // The command that says whose presence to hear of, when that is another list than before.
  watch(users, me) {
    const list = [...new Set(users)].filter((u) => u !== me).sort().slice(0, WATCH_MAX);
    const key = list.join();
    if (key === this.watched) return null;
    this.watched = key;
    return { type: "watch", users: list };
  }
}
