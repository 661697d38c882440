// What an operator does to one device, or to all that a search finds.

import { count, find, post, say, some, sure } from "./page.js";

export class Chosen {
  constructor(job, session) {
    Object.assign(this, { job, session, names: [], cutsOff: false });
    find("#labelling").addEventListener("submit", (event) => {
      event.preventDefault();
      this.act(event.submitter.value, find("#new-label").value.trim());
    });
    find("#block").addEventListener("click", () => this.block());
    find("#unblock").addEventListener("click", () => this.act("unblock"));
  }

  // Takes in what the server says; tells whether somebody may do something here.
  allow(state) {
    this.cutsOff = state.cuts_off;
    return this.session.role === "operate" && state.live;
  }

  get title() {
    return this.names.length === 1 ? this.names[0] : `${count(this.names.length)} devices`;
  }

  open(names) {
    this.names = names;
    say(find("#chosen-title"), this.title);
    say(find("#chosen-names"), names.length === 1 ? "" : some(names));
    this.tell("");
    find("#new-label").value = "";
    find("#chosen").showModal();
  }

  async block() {
    const logins = this.cutsOff ? "Their logins at the broker are taken away." : "Their logins at the broker stay: this server cannot take them away.";
    const text = `Names and keys are refused from now on, and no round waits for them. ${logins}`;
    if (await sure(`Block ${this.title}?`, text, "Do nothing", "Block")) this.act("block");
  }

  async act(act, label = "") {
    this.tell("Working …");
    const { names } = this;
    try {
      const done = await post(`api/jobs/${this.job}/devices`, { act, names, label }, this.session.csrf);
      if (names === this.names) this.tell(...describe(act, label, names, done));
    } catch (error) {
      this.tell(`Nothing was changed: ${error.message}`);
    }
  }

  tell(text, command = "") {
    say(find("#chosen-said"), text);
    say(find("#chosen-command code"), command);
    find("#chosen-command").hidden = !command;
  }
}

// What was done, and a command where there is something left to do.
function describe(act, label, names, done) {
  const devices = `${count(done.changed)} ${done.changed === 1 ? "device" : "devices"}`;
  const login = `fedspzo enroll ${names.join(" ")} --broker BROKER-FOLDER`;
  if (act === "label") return [`“${label}” was put on ${devices}.`];
  if (act === "unlabel") return [`“${label}” was taken off ${devices}.`];
  if (act === "unblock") return [`Let in again: ${devices}. Where a login was taken away, this makes another on the broker's machine:`, login];
  if (done.logins !== null) return [`Blocked: ${devices}. Logins taken away: ${count(done.logins)}.`];
  const why = done.problem ? ` (${done.problem})` : "";
  return [`Blocked: ${devices}. Their logins are still there${why}. This takes them away on the broker's machine:`, `${login} --remove`];
}
