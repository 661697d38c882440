// Invitations for many devices, and the devices that ask to take part by one.

import { ago, answer, clock, count, fill, find, get, make, post, say, some, sure } from "./page.js";

export class Enrolment {
  constructor(job, session) {
    Object.assign(this, { job, session, stamp: null, known: null });
    find("#askers tbody").addEventListener("click", (event) => {
      if (event.target.closest("button")) this.decide([event.target.closest("button").textContent]);
    });
    find("#all-asking").addEventListener("click", async () => this.decide(await get(`api/jobs/${job}/askers`)));
    find("#invited tbody").addEventListener("click", (event) => {
      if (event.target.closest("button")) this.takeBack(event.target.closest("button").value);
    });
    find("#invite").addEventListener("submit", (event) => {
      event.preventDefault();
      this.invite();
    });
    find("#made-file").addEventListener("click", () => {
      find("#made-file").href = URL.createObjectURL(new Blob([find("#made code").textContent]));
    });
    find("#made").addEventListener("close", () => {
      URL.revokeObjectURL(find("#made-file").href);
      find("#made-file").href = "#";
      say(find("#made code"), "");
    });
  }

  async show(state) {
    const may = this.session.role === "operate" && state.live;
    find("#invitations").hidden = !may;
    if (!may) return;
    if (state.enrolment !== this.stamp) {
      this.known = await get(`api/jobs/${this.job}/enrolment`);
      this.stamp = state.enrolment;
    }
    const { asking, askers, invitations, lacks } = this.known;
    find("#asking").hidden = !asking && !find("#decided").textContent;
    find("#all-asking").hidden = !asking;
    say(find("#asking-found"), `${count(asking)} ${asking === 1 ? "device asks" : "devices ask"}${asking > askers.length ? `; the first ${askers.length}:` : ""}`);
    fill(
      find("#askers tbody"),
      askers.map((a) => [
        make("button", a.name, { type: "button", "aria-haspopup": "dialog" }), a.invitation, a.group || "–",
        `${ago(state.time - a.asked)} ago`, make("code", a.key),
      ]),
      [3],
    );
    find("#askers").hidden = !asking;
    fill(
      find("#invited tbody"),
      invitations.map((i) => [
        i.name, i.group || "–", `${count(i.used)} of ${count(i.uses)}`,
        i.expires > state.time ? clock(i.expires) : "has expired", i.waits ? "once they are admitted" : "at once",
        make("button", `Take ${i.name} back …`, { type: "button", value: i.name, "aria-haspopup": "dialog" }),
      ]),
      [2],
    );
    find("#invited").hidden = !invitations.length;
    find("#no-invitation").hidden = invitations.length > 0;
    find("#invite").hidden = lacks !== "";
    find("#lacks").hidden = lacks === "";
    say(find("#lacks"), `To make invitations here, start the server with ${lacks}.`);
  }

  async decide(names) {
    if (!names.length) return;
    const title = names.length === 1 ? names[0] : `${count(names.length)} devices`;
    const key = names.length === 1 && this.known.askers.find((asker) => asker.name === names[0])?.key;
    say(find("#decision-title"), `May ${title} take part?`);
    say(find("#decision-names"), key ? "" : some(names));
    find("#decision-key").hidden = !key;
    say(find("#decision-key code"), key || "");
    const answered = await answer(find("#decision"));
    if (!answered) return;
    try {
      await post(`api/jobs/${this.job}/askers`, { names, admit: answered === "admit" }, this.session.csrf);
      say(find("#decided"), answered === "admit"
        ? `Admitted: ${title}. A device hears of it when it asks again, within half a minute.`
        : `Refused: ${title}. The command fedspzo admit can still let them in.`);
    } catch (error) {
      say(find("#decided"), `Nothing was changed: ${error.message}`);
    }
  }

  async invite() {
    const name = find("#invite-name").value.trim();
    const wish = {
      name, uses: Number(find("#invite-uses").value), seconds: Number(find("#invite-seconds").value),
      group: find("#invite-group").value.trim(), waits: find("#invite-waits").checked,
    };
    try {
      const made = await post(`api/jobs/${this.job}/invitations`, wish, this.session.csrf);
      say(find("#invitations-said"), "");
      find("#invite").reset();
      say(find("#made-title"), `Invitation ${name}`);
      find("#made-certified").hidden = !made.certified;
      say(find("#made code"), made.text);
      find("#made-file").download = `${name}.invitation`;
      find("#made").showModal();
    } catch (error) {
      say(find("#invitations-said"), `Not made: ${error.message}`);
    }
  }

  async takeBack(name) {
    if (!(await sure(`Take the invitation ${name} back?`, "Nobody can use it any more. The devices that it let in stay.", "Keep it", "Take it back"))) return;
    try {
      await post(`api/jobs/${this.job}/invitations/take-back`, { name }, this.session.csrf);
      say(find("#invitations-said"), `Taken back: ${name}.`);
    } catch (error) {
      say(find("#invitations-said"), `Not taken back: ${error.message}`);
    }
  }
}
