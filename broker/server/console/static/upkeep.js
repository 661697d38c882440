// The server's log, and backups of its state folder.

import { clock, fill, find, get, post, say } from "./page.js";

const LEVELS = ["info", "warning", "error", "critical"];

export class Log {
  constructor(job) {
    Object.assign(this, { job, stamp: null, lines: [] });
    find("#level").addEventListener("change", () => this.draw());
  }

  async show(state) {
    find("#log").hidden = state.log === null;
    find("#no-log").hidden = state.log !== null;
    if (state.log === this.stamp) return;
    this.lines = (await get(`api/jobs/${this.job}/log`)) ?? [];
    this.stamp = state.log;
    this.draw();
  }

  draw() {
    const least = LEVELS.indexOf(find("#level").value);
    const shown = this.lines.filter((line) => LEVELS.indexOf(line.level) >= least).reverse();
    fill(find("#log tbody"), shown.map((line) => [clock(line.at), line.level, line.kind, line.text]));
    say(find("#lines"), `${shown.length} of the last ${this.lines.length} lines, the newest first`);
  }
}

export class Backups {
  constructor(job, session) {
    this.may = session.role === "operate";
    find("#back-up").addEventListener("click", async () => {
      try {
        await post(`api/jobs/${job}/backup`, {}, session.csrf);
      } catch (error) {
        say(find("#backup-said"), `Not backed up: ${error.message}`);
      }
    });
  }

  show(state) {
    const { backup, backing_up: now } = state;
    find("#backup").hidden = !state.live && !backup;
    say(find("#backup-last"), backup ? `Up to round ${backup.round}, ${clock(backup.at)}, by ${backup.who}, in ${backup.folder}.` : "There is no backup yet.");
    find("#backup-command").hidden = backup !== null;
    say(find("#backup-command code"), `fedspzo server backup ${state.folder} BACKUP-FOLDER`);
    find("#backup-again").hidden = !(state.live && this.may && backup);
    if (!now) return;
    const busy = now.seconds !== null;
    find("#back-up").disabled = busy;
    find("#backing-up").hidden = !busy;
    if (busy) say(find("#backup-said"), `Backing up for ${Math.floor(now.seconds)} s …`);
    else if (now.problem) say(find("#backup-said"), `Not backed up: ${now.problem}`);
    else if (backup && this.at !== undefined && backup.at !== this.at) say(find("#backup-said"), "Backed up.");
    this.at = backup?.at ?? 0;
  }
}
