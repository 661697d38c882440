// Small things that all parts of the page share. Whatever comes from outside goes in as text.

export const find = (selector, root = document) => root.querySelector(selector);

export function make(tag, text = "", more = {}) {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
  return node;
}

// Changes what is there only where it differs, so that nothing is read out twice and no selection is lost.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Puts children in the place of those that differ; of a row, cells, so that a button in another cell keeps the focus.
function put(parent, wanted) {
  wanted.forEach((child, at) => {
    const old = parent.children[at];
    if (!old) parent.append(child);
    else if (old.isEqualNode(child)) return;
    else if (old.tagName === "TR" && child.tagName === "TR") put(old, [...child.children]);
    else old.replaceWith(child);
  });
  while (parent.children.length > wanted.length) parent.lastChild.remove();
}

// Rows of a table: each a list of texts or nodes; numbers are the columns that stand at the right.
export function fill(body, rows, numbers = []) {
  const wanted = rows.map((cells) => {
    const row = make("tr");
    cells.forEach((cell, column) => {
      const td = make("td");
      if (numbers.includes(column)) td.className = "number";
      td.append(cell instanceof Node ? cell : document.createTextNode(String(cell)));
      row.append(td);
    });
    return row;
  });
  put(body, wanted);
}

// Pairs of a term and what is said of it, with a note where there is one.
export function list(node, facts) {
  const wanted = facts.map(([term, text, note]) => {
    const pair = make("div");
    const said = make("dd", text);
    if (note) said.append(make("small", note));
    pair.append(make("dt", term), said);
    return pair;
  });
  put(node, wanted);
}

export const number = (value, digits = 4) =>
  value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits)));

export const count = (value) => value.toLocaleString("en");

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at++) value /= 1000;
  return `${at ? value.toPrecision(3) : Math.round(value)} ${units[at]}`;
}

export function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

export const clock = (time) => new Date(time * 1000).toLocaleString();

export class Refused extends Error {}

// JSON from the console's own server; who has no session is sent to log in.
export async function get(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401) {
    location.assign("login");
    throw new Refused("log in again");
  }
  const said = await answer.json();
  if (!answer.ok) throw new Refused(said.error);
  return said;
}

export async function post(path, value, csrf) {
  const answer = await fetch(path, {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(value),
  });
  if (!answer.ok) throw new Refused((await answer.json()).error);
  return answer.status === 204 ? null : answer.json();
}

const NAMED = 20;

// Some of many devices' names.
export function some(names) {
  return names.slice(0, NAMED).join(", ") + (names.length > NAMED ? `, … and ${count(names.length - NAMED)} more` : "");
}

// Opens a dialog; gives the value of the button that closes it, "" after Esc.
export function answer(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

// Asks before something is done; tells whether it shall be. Esc and Enter mean no.
export async function sure(title, text, not, yes) {
  [["title", title], ["text", text], ["not", not], ["yes", yes]].forEach(([part, words]) => say(find(`#sure-${part}`), words));
  return (await answer(find("#sure"))) === "yes";
}
