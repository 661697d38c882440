// Curves over rounds, drawn by uPlot, each with a table of its numbers for who does not see or point.

import { fill, make, number } from "./page.js";

const SHOWN = 50; // rows of a table
const HEIGHT = 240;
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const COLORS = ["first", "second", "third"];

export class Chart {
  // zoomed(first, last) is called when somebody zooms, with no arguments for all.
  constructor(parent, title, labels, zoomed) {
    this.labels = labels;
    this.zoomed = zoomed;
    this.data = [[], ...labels.map(() => [])];
    this.range = null;
    this.figure = make("figure");
    this.plot = make("div", "", { class: "plot", role: "img" });
    this.title = title;
    const details = make("details");
    const scroll = make("div", "", { class: "scroll low", tabindex: "0", role: "region", "aria-label": `${title}: table` });
    const table = make("table");
    const head = make("tr");
    ["Round", ...labels].forEach((label) => head.append(make("th", label, { scope: "col", class: "number" })));
    this.body = make("tbody");
    table.append(make("thead"), this.body);
    table.tHead.append(head);
    scroll.append(table);
    details.append(make("summary", `Table of the last ${SHOWN}`), scroll);
    this.figure.append(make("figcaption", title), this.plot, details);
    parent.append(this.figure);
    this.watch = new ResizeObserver(() => this.chart?.setSize(this.size()));
    this.watch.observe(this.plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  size() {
    return { width: Math.max(200, this.plot.clientWidth), height: HEIGHT };
  }

  draw() {
    this.chart?.destroy();
    const axis = { stroke: color("text"), grid: { stroke: color("grid"), width: 1 }, ticks: { stroke: color("grid"), width: 1 } };
    const value = (_, found) => number(found, 6);
    const scale = { time: false, range: (_, low, high) => this.range ?? [low ?? 0, high > low ? high : (low ?? 0) + 1] };
    this.chart = new uPlot(
      {
        ...this.size(),
        scales: { x: scale },
        axes: [{ ...axis, values: (_, splits) => splits.map((at) => (Number.isInteger(at) ? at : "")) }, { ...axis, size: 60 }],
        series: [
          { label: "Round" },
          ...this.labels.map((label, at) => ({
            label, value, stroke: color(COLORS[at % COLORS.length]), width: 2, spanGaps: true,
            dash: at ? [6 * at, 4] : undefined, points: { size: 5, fill: color("card"), show: (u) => u.data[0].length < 60 || at > 0 },
          })),
        ],
        cursor: { drag: { x: true, y: false, setScale: false } },
        hooks: {
          setSelect: [
            (u) => {
              if (u.select.width < 5) return;
              const [first, last] = [u.select.left, u.select.left + u.select.width].map((x) => u.posToVal(x, "x"));
              u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
              this.zoomed(Math.max(1, Math.floor(first)), Math.ceil(last));
            },
          ],
          ready: [(u) => u.over.addEventListener("dblclick", () => this.zoomed())],
        },
      },
      this.data,
      this.plot,
    );
  }

  // columns: rounds in order, then a list of numbers or null for each label; range: [first, last] to show, or null.
  show(columns, range) {
    this.data = columns;
    this.range = range;
    if (this.chart) this.chart.setData(columns, true);
    else this.draw();
    const rounds = columns[0];
    const rows = [];
    for (let at = rounds.length - 1; at >= Math.max(0, rounds.length - SHOWN); at--) {
      rows.push([rounds[at], ...columns.slice(1).map((column) => number(column[at], 6))]);
    }
    fill(this.body, rows, this.labels.map((_, at) => at).concat(this.labels.length));
    const last = rows[0] ? `; in round ${rows[0][0]}: ${this.labels.map((label, at) => `${label} ${rows[0][at + 1]}`).join(", ")}` : "";
    this.plot.setAttribute("aria-label", `${this.title} over ${rounds.length} rounds${last}`);
  }

  remove() {
    this.watch.disconnect();
    this.chart?.destroy();
    this.figure.remove();
  }
}

// Two lists of points as columns over the same rounds.
export function join(one, other) {
  const rounds = [...new Set([...one.round, ...other.round])].sort((a, b) => a - b);
  const at = new Map(rounds.map((round, place) => [round, place]));
  const spread = (points, values) => {
    const column = new Array(rounds.length).fill(null);
    points.round.forEach((round, place) => (column[at.get(round)] = values[place]));
    return column;
  };
  return { rounds, spread };
}
