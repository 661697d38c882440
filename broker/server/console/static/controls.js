// What an operator may change. The page shows what the server says it is, never what was typed.

import { clock, fill, find, post, say, sure } from "./page.js";

const SHOWN = 50; // changes

export class Controls {
  constructor(job, session) {
    Object.assign(this, { job, session });
    find("#pause").addEventListener("click", () => this.change("state", "paused"));
    find("#resume").addEventListener("click", () => this.change("state", "running"));
    find("#end").addEventListener("click", async () => {
      const text = "The open round is closed first. Devices are then told that the job is over, and no round follows.";
      if (await sure("End this job?", text, "Keep it", "End the job")) this.change("state", "ended");
    });
    for (const form of document.querySelectorAll("form[data-setting]")) {
      const input = find("input", form);
      input.addEventListener("input", () => (input.dataset.typed = "1"));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        const numbers = input.value.split(",").map((text) => (text.trim() === "" ? NaN : Number(text)));
        const name = form.dataset.setting;
        if (numbers.some(Number.isNaN) || (name !== "learning_rates" && numbers.length > 1)) {
          say(find("#changed"), `“${input.value}” is no number${name === "learning_rates" ? " or list of numbers, such as 1e-4, 1e-3" : ""}.`);
          return;
        }
        delete input.dataset.typed;
        this.change(name, name === "learning_rates" ? numbers : numbers[0]);
      });
    }
  }

  async change(name, value) {
    try {
      await post(`api/jobs/${this.job}/settings`, { name, value }, this.session.csrf);
      say(find("#changed"), `Changed: ${name.replace("_", " ")} is ${[value].flat().join(", ")} from the next plan on.`);
    } catch (error) {
      say(find("#changed"), `Not changed: ${error.message}`);
    }
  }

  show(state) {
    const may = this.session.role === "operate" && state.live;
    find("#controls").hidden = !may;
    if (may) {
      const over = state.now.finished;
      find("#pause").disabled = over || state.state !== "running";
      find("#resume").disabled = state.state === "running";
      find("#end").disabled = over || state.state === "ended";
      for (const form of document.querySelectorAll("form[data-setting]")) {
        const input = find("input", form);
        if (!input.dataset.typed && document.activeElement !== input) input.value = [state.settings[form.dataset.setting]].flat().join(", ");
      }
    }
    const changes = [...state.changes, ...state.device_changes].sort((one, other) => other.at - one.at).slice(0, SHOWN);
    fill(
      find("#changes tbody"),
      changes.map((c) => [clock(c.at), c.who, what(c), plain(c.old), plain(c.new), c.round ?? "–"]),
      [5],
    );
    find("#changes").hidden = !changes.length;
    find("#no-changes").hidden = changes.length > 0;
  }
}

function what(change) {
  const name = change.name.replace("_", " ");
  if (!change.devices?.length) return name;
  return `${change.devices.join(", ")}${change.count > change.devices.length ? `, … (${change.count} devices)` : ""}: ${name}`;
}

const plain = (json) => [JSON.parse(json) ?? "–"].flat().join(", ");
