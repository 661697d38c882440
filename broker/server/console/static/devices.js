// A page of the devices: found, ordered and cut by the server.

import { Chosen } from "./chosen.js";
import { ago, bytes, count, fill, find, get, make, number, say } from "./page.js";

const STATES = ["ready", "unwilling", "catching up", "away"]; // that only a running server knows

// Title, what it is ordered by, whether it is a number, how a device's cell reads.
const COLUMNS = [
  ["Device", "name", false, (d) => d.name],
  ["Is", null, false, (d) => d.state ?? "–"],
  ["Group", null, false, (d) => d.group ?? "–"],
  ["Labels", null, false, (d) => d.labels.join(", ") || "–"],
  ["Last seen", "seen", true, (d) => `${ago(d.seen)} ago`],
  ["Behind", "lag", true, (d) => count(d.lag)],
  ["Results", "results", true, (d) => count(d.results)],
  ["Examples", "examples", true, (d) => count(d.examples)],
  ["Battery", "battery", true, (d) => `${d.battery === null ? "–" : `${Math.round(100 * d.battery)} %`}${d.charging ? " ⚡" : ""}`],
  ["Version", "version", false, (d) => d.version ?? "–"],
  ["Can", null, false, (d) => d.can.join(", ") || "–"],
  ["Bytes up, down", "bytes", true, (d) => `${bytes(d.up)}, ${bytes(d.down)}`],
  ["J a round", "joules", true, (d) => (d.joules === null ? "–" : `${d.estimated ? "~" : ""}${number(d.joules)}`)],
  ["Unusual", "anomalies", false, (d) => d.unusual || "–"],
];

export class Devices {
  constructor(job, session) {
    Object.assign(this, { job, order: "name", descending: false, page: 0, may: false });
    this.chosen = new Chosen(job, session);
    const head = find("#devices thead tr");
    for (const [title, order, right] of COLUMNS) {
      const th = make("th", "", { scope: "col", ...(right ? { class: "number" } : {}) });
      if (order) {
        const button = make("button", title, { type: "button" });
        button.addEventListener("click", () => this.sort(order));
        th.append(button);
        th.dataset.order = order;
      } else th.textContent = title;
      head.append(th);
    }
    find("#match").addEventListener("input", () => this.turn(0));
    for (const select of ["#choice", "#group", "#label"]) find(select).addEventListener("change", () => this.turn(0));
    find("#all-found").addEventListener("click", () => this.chooseAll());
    find("#devices tbody").addEventListener("click", (event) => {
      if (event.target.closest("button")) this.chosen.open([event.target.closest("button").textContent]);
    });
    find("#find").addEventListener("submit", (event) => event.preventDefault());
    find("#before").addEventListener("click", () => this.turn(this.page - 1));
    find("#after").addEventListener("click", () => this.turn(this.page + 1));
  }

  sort(order) {
    this.descending = this.order === order && !this.descending;
    this.order = order;
    this.turn(0);
  }

  turn(page) {
    this.page = page;
    this.show();
  }

  search() {
    return { match: find("#match").value, choice: find("#choice").value, group: find("#group").value, label: find("#label").value };
  }

  async chooseAll() {
    const names = await get(`api/jobs/${this.job}/names?${new URLSearchParams(this.search())}`);
    if (names.length) this.chosen.open(names);
  }

  // What the server says that concerns all devices.
  allow(state) {
    this.may = this.chosen.allow(state);
    find("#all-found").hidden = !this.may;
    for (const option of find("#choice").options) option.hidden = !state.live && STATES.includes(option.value);
    offer(find("#group"), state.groups);
    offer(find("#label"), state.labels);
  }

  async show() {
    const asked = new URLSearchParams({
      ...this.search(), order: this.order, descending: this.descending ? "1" : "0", page: String(this.page),
    }).toString();
    this.asked = asked;
    const found = await get(`api/jobs/${this.job}/devices?${asked}`);
    if (this.asked !== asked) return; // somebody has asked for something else meanwhile
    this.page = found.page;
    fill(
      find("#devices tbody"),
      found.devices.map((device) => {
        const cells = COLUMNS.map((column) => column[3](device));
        if (this.may) cells[0] = make("button", device.name, { type: "button", "aria-haspopup": "dialog" });
        return cells;
      }),
      COLUMNS.flatMap((column, at) => (column[2] ? [at] : [])),
    );
    for (const th of find("#devices thead tr").children) {
      if (th.dataset.order === this.order) th.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    say(find("#found"), `${count(found.found)} found`);
    say(find("#page"), `Page ${found.page + 1} of ${found.pages}`);
    find("#before").disabled = found.page === 0;
    find("#after").disabled = found.page + 1 >= found.pages;
  }
}

// Choices beside "any"; one that is made stays, even if there is no such device any more.
function offer(select, names) {
  const known = new Set([...select.options].map((option) => option.value));
  for (const name of names) if (!known.has(name)) select.add(new Option(name, name));
  for (const option of [...select.options]) {
    if (option.value && !names.includes(option.value) && !option.selected) option.remove();
  }
  select.parentNode.hidden = select.options.length === 1;
}
