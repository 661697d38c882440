// What the page knows of a job's rounds, and the charts of it: all of them, thinned by the server, or a part of them.

import { Chart, join } from "./charts.js";
import { find, get } from "./page.js";

const MOST = 2000; // points that are gathered before the server thins them again

export class Curves {
  constructor(job) {
    this.job = job;
    this.known = null; // as the server gives them
    this.last = 0; // round up to which they are known
    this.range = null;
    this.charts = new Map();
    this.select = find("#range");
    this.select.addEventListener("change", () => this.choose());
  }

  choose() {
    const rounds = Number(this.select.value);
    this.zoom(...(rounds ? [Math.max(1, this.last - rounds + 1), this.last] : []));
  }

  async zoom(first, last) {
    this.range = first === undefined ? null : [first, last];
    const chosen = this.range && this.last === last ? String(last - first + 1) : "zoom";
    this.select.value = !this.range ? "0" : [...this.select.options].some((o) => o.value === chosen) ? chosen : "zoom";
    this.fine = null;
    const asked = this.range;
    if (asked && this.known && this.known.step > 1) {
      const found = await get(`api/jobs/${this.job}/curves?first=${first}&last=${last}`);
      if (asked !== this.range) return;
      this.fine = found;
    }
    this.draw();
  }

  // Takes in the rounds after the last one known; tells whether there were any.
  async add(curves, last, evaluated) {
    const fresh = curves.rounds.round.length > 0 || evaluated !== this.evaluated;
    if (this.known === null) this.known = curves;
    else if (fresh) {
      const { rounds } = this.known;
      if (this.known.step > 1 || curves.step > 1 || rounds.round.length + curves.rounds.round.length > MOST || evaluated !== this.evaluated) {
        this.known = await get(`api/jobs/${this.job}/curves`);
      } else {
        for (const name of Object.keys(rounds)) rounds[name].push(...curves.rounds[name]);
      }
    }
    this.evaluated = evaluated;
    const followed = this.range && Number(this.select.value) && this.range[1] === this.last;
    this.last = last;
    if (followed) await this.zoom(Math.max(1, last - Number(this.select.value) + 1), last);
    else if (fresh || !this.charts.size) this.draw();
  }

  draw() {
    if (!this.known) return;
    const { rounds, evaluations } = this.fine ?? this.known;
    const scores = Object.keys(evaluations.scores);
    const both = join(rounds, evaluations);
    this.chart("Loss", ["Loss of a round", "Held-out loss"], [both.rounds, both.spread(rounds, rounds.loss), both.spread(evaluations, evaluations.loss)]);
    if (scores.length) this.chart("Held-out metrics", scores, [evaluations.round, ...scores.map((name) => evaluations.scores[name])]);
    this.chart("Results", ["Results"], [rounds.round, rounds.results]);
    this.chart("Seconds", ["Seconds of a round"], [rounds.round, rounds.seconds]);
    if (rounds.joules.some((value) => value !== null)) this.chart("Energy", ["Joules of a device"], [rounds.round, rounds.joules]);
  }

  chart(title, labels, columns) {
    let chart = this.charts.get(title);
    if (chart && chart.labels.join() !== labels.join()) {
      chart.remove();
      chart = undefined;
    }
    if (!chart) {
      chart = new Chart(find("#charts"), title, labels, (first, last) => this.zoom(first, last));
      this.charts.set(title, chart);
    }
    if (this.range) {
      const [first, last] = this.range;
      const kept = columns[0].map((round, at) => at).filter((at) => columns[0][at] >= first && columns[0][at] <= last);
      columns = columns.map((column) => kept.map((at) => column[at]));
    }
    chart.show(columns, this.range);
  }
}
