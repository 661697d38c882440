// The page: asks the server what is new twice a second, and shows it.

import { Chart } from "./charts.js";
import { Controls } from "./controls.js";
import { Curves } from "./curves.js";
import { Devices } from "./devices.js";
import { Enrolment } from "./enrolment.js";
import { ago, bytes, clock, count, fill, find, get, list, make, number, post, say } from "./page.js";
import { Backups, Log } from "./upkeep.js";

const EVERY_MS = 400;
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

function percent(value) {
  return `${(100 * value).toPrecision(3)} %`;
}

function scores(evaluation) {
  return Object.entries(evaluation.scores).map(([name, value]) => `${name} ${number(value)}`).join(", ");
}

function showFacts(state) {
  const { rounds } = state.curves.shown;
  const at = rounds.round.length - 1;
  const facts = [["Round", state.rounds ? `${count(state.round)} of ${count(state.rounds)}` : count(state.round)]];
  if (at >= 0) {
    facts.push(["Loss", number(rounds.loss[at], 6), `closed ${ago(state.time - rounds.closed[at])} ago`]);
    facts.push(["Seconds of a round", number(rounds.seconds[at])]);
  }
  if (state.best) facts.push(["Best held-out loss", number(state.best.loss, 6), `round ${state.best.round}; ${scores(state.best)}`]);
  facts.push(["Devices", count(state.fleet.known), state.live ? `${count(state.now.ready)} can be asked` : ""]);
  if (state.privacy) {
    const { epsilon, budget, delta, open_rounds } = state.privacy;
    const open = open_rounds ? `; ${open_rounds} rounds without noise promise nothing` : "";
    facts.push(["Privacy spent", `ε ${number(epsilon)} of ${number(budget)}`, `δ ${delta}${open}`]);
  } else facts.push(["Privacy spent", "no noise", "nothing is promised"]);
  facts.push(["Bytes of devices", `${bytes(state.fleet.up)} up`, `${bytes(state.fleet.down)} down`]);
  const { measured, estimated } = state.fleet;
  if (measured || estimated) facts.push(["Joules of devices", number(measured + estimated), estimated ? `${number(estimated)} of it estimated` : "measured"]);
  const { disk } = state;
  facts.push(["Journal", bytes(disk.journal), `${count(disk.journal)} bytes; file ${bytes(disk.database)}`]);
  facts.push(["Disk", `${bytes(disk.free)} free`, `${percent(disk.free / disk.total)}; snapshots ${bytes(disk.snapshots)}`]);
  const expires = state.certificate_end;
  if (expires !== null) facts.push(["Certificate", `${Math.floor((expires - state.time) / 86400)} days left`, clock(expires)]);
  list(find("#facts"), facts);
}

function showNow(state) {
  const { now } = state;
  const open = now && now.round !== null;
  find("#answered").hidden = !open;
  if (!open) {
    say(find("#now-line"), "No round is open.");
  } else {
    const left = now.seconds_left === undefined ? "" : now.seconds_left > 0 ? ` ${Math.ceil(now.seconds_left)} s to the deadline.` : " The deadline has passed.";
    say(find("#now-line"), `Round ${now.round}: ${count(now.answered)} of ${count(now.asked)} asked have answered.${left}`);
    find("#answered").max = Math.max(1, now.asked);
    find("#answered").value = now.answered;
  }
  say(find("#waiting-title"), `Waiting for ${open ? count(now.waiting) : 0}`);
  say(find("#waiting"), open ? now.waiting_for.join(", ") + (now.waiting > now.waiting_for.length ? ", …" : "") : "");
  const declined = open ? now.declined : 0;
  find("#declined-details").hidden = declined === undefined;
  say(find("#declined-title"), `Declined ${count(declined ?? 0)}`);
  fill(find("#declined tbody"), open ? Object.entries(now.reasons ?? {}) : []);
}

function describe(state) {
  if (!state.live) return state.rounds && state.round >= state.rounds ? "Finished; shown from its folder." : "Shown from its folder, read only.";
  if (state.now.finished) {
    const resumed = state.changes.find((change) => change.name === "state")?.old === '"ended"';
    return state.state === "ended" ? "Ended." : resumed ? "Continues when its server is started again." : "Finished.";
  }
  return { running: "Running.", paused: state.now.round === null ? "Paused." : "Pauses after this round.", ended: "Ends after this round." }[state.state];
}

class Job {
  constructor(number, session) {
    this.number = number;
    this.curves = new Curves(number);
    this.devices = new Devices(number, session);
    this.log = new Log(number);
    this.backups = new Backups(number, session);
    this.enrolment = new Enrolment(number, session);
    this.controls = new Controls(number, session);
    find("#job").hidden = false;
  }

  async update() {
    const [state] = await Promise.all([get(`api/jobs/${this.number}/state?after=${this.curves.last}`), this.devices.show()]);
    await this.curves.add(state.curves, state.round, state.evaluations);
    state.curves.shown = this.curves.known;
    say(find("#name"), state.name);
    say(find("#status"), describe(state));
    document.title = `${state.name}: round ${state.round} · FedSPZO`;
    showFacts(state);
    showNow(state);
    find("#counted").hidden = !Object.keys(state.counts).length;
    list(find("#counts"), Object.entries(state.counts).map(([name, value]) => [name, count(value)]));
    this.controls.show(state);
    this.devices.allow(state);
    this.backups.show(state);
    await this.enrolment.show(state);
    await this.log.show(state);
  }
}

class Overview {
  constructor() {
    this.known = "";
    find("#overview").hidden = false;
    document.title = "Jobs · FedSPZO";
  }

  async update() {
    const jobs = await get("api/jobs");
    fill(
      find("#jobs tbody"),
      jobs.map((job, at) => [
        make("a", job.name, { href: `?job=${at}` }), job.live ? job.state : "read only",
        job.rounds ? `${count(job.round)} of ${count(job.rounds)}` : count(job.round), number(job.loss, 6),
        job.best ? `loss ${number(job.best.loss, 6)} in round ${job.best.round}; ${scores(job.best)}` : "–", job.folder,
      ]),
      [2, 3],
    );
    const stamp = JSON.stringify(jobs.map((job) => [job.round, job.best]));
    if (stamp === this.known) return;
    this.known = stamp;
    const curves = await Promise.all(jobs.map((_, at) => get(`api/jobs/${at}/curves`)));
    const labels = jobs.map((job, at) => `${at + 1}: ${job.name}`);
    this.chart ??= new Chart(find("#compared"), "Loss of each job", labels, () => {});
    const rounds = [...new Set(curves.flatMap((found) => found.rounds.round))].sort((a, b) => a - b);
    const columns = curves.map((found) => {
      const values = new Map(found.rounds.round.map((round, at) => [round, found.rounds.loss[at]]));
      return rounds.map((round) => values.get(round) ?? null);
    });
    this.chart.show([rounds, ...columns], null);
  }
}

async function main() {
  const session = await get("api/session");
  say(find("#who"), `${session.name} (${session.role})`);
  find("#logout").addEventListener("click", async () => {
    await post("logout", {}, session.csrf);
    location.assign("login");
  });
  const asked = new URLSearchParams(location.search).get("job");
  const shown = asked === null && (await get("api/jobs")).length > 1 ? new Overview() : new Job(Number(asked ?? 0), session);
  for (;;) {
    if (!document.hidden) {
      try {
        await shown.update();
        find("#connection").className = "";
        say(find("#connection"), "Live");
      } catch (error) {
        find("#connection").className = "lost";
        say(find("#connection"), `No news: ${error.message}`);
        await wait(3 * EVERY_MS);
      }
    }
    await wait(EVERY_MS);
  }
}

main();
