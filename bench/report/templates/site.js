// Leaderboard and gallery: what is shown follows from the part of the address behind #, so that it can be sent as a
// link: #view=cost&sort=seconds&order=ascending&dataset=digits. Texts of a run become text nodes, never markup.
"use strict";
const KEYS = ["dataset", "ipc", "preset", "suite", "run"];
const FIRST = 500;
const compare = new Intl.Collator("en", { numeric: true }).compare;
const byId = id => document.getElementById(id);
const form = byId("filters"), board = byId("board");
const data = byId("data") ? JSON.parse(byId("data").textContent) : null;
let limit = FIRST;

function make(name, text = "", kind = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function state() {
  return new URLSearchParams(location.hash.slice(1));
}

function go(changes) {
  const wanted = state();
  for (const [key, value] of Object.entries(changes)) value ? wanted.set(key, value) : wanted.delete(key);
  limit = FIRST;
  history.replaceState(null, "", "#" + wanted);
  show();
}

// Facts of a row by filter key: of an entry of the data, or of a figure of the gallery.
function facts(row) {
  if (row instanceof Element) return row.dataset;
  const run = data.runs[row.run];
  return { dataset: row.dataset, ipc: String(row.ipc ?? "all"), method: row.method, preset: run.preset, suite: run.suite, run: run.name };
}

function passes(row, wanted) {
  const own = facts(row);
  return KEYS.every(key => !wanted.get(key) || wanted.get(key) === own[key])
    && own.method.toLowerCase().includes((wanted.get("method") ?? "").trim().toLowerCase());
}

function fillFilters(rows) {
  for (const key of KEYS) {
    const values = [...new Set(rows.map(row => facts(row)[key]))].sort(compare);
    form.elements[key].append(...values.map(value => new Option(value, value)));
  }
  form.hidden = false;
  form.addEventListener("input", event => go({ [event.target.name]: event.target.value }));
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", event => {
    event.preventDefault();
    go(Object.fromEntries([...KEYS, "method"].map(key => [key, ""])));
  });
}

function setFilters(wanted) {
  for (const key of [...KEYS, "method"]) {
    const field = form.elements[key], value = wanted.get(key) ?? "";
    if (field.options && ![...field.options].some(option => option.value === value)) field.append(new Option(value, value));
    if (field.value !== value) field.value = value;
  }
}

// ---------------------------------------------------------------------------------------------- leaderboard

// Columns: id (for the address), title, of (row -> text or number to sort by), cell (row -> td or th), better.
function columnsOf(view) {
  const text = (id, title, of) => ({ id, title, of, cell: row => make("td", of(row), "text") });
  const method = { id: "method", title: "method", of: row => row.method, cell: methodCell };
  const ipc = { id: "ipc", title: "IPC", of: row => row.ipc, cell: row => make("td", row.ipc ?? "all"), better: "low" };
  const preset = text("preset", "preset", row => data.runs[row.run].preset);
  preset.cell = row => make("td", preset.of(row) + (data.runs[row.run].comparable ? "" : " ‡"), "text");
  const columns = [method, text("dataset", "dataset", row => row.dataset), ipc];
  view.tags.forEach((title, index) => columns.push(text("tag " + title, title, row => row.tags[index] ?? "")));
  for (const { id, title, better } of view.columns) {
    columns.push({ id: "value " + id, title, better, of: row => row.values[id]?.[1] ?? null, cell: row => valueCell(row, row.values[id]) });
  }
  if (view.rows.some(row => row.published.length)) {
    columns.push({ id: "published", title: "published", of: row => row.published[0]?.[1] ?? null, cell: publishedCell });
  }
  columns.push(preset, text("settings", "settings", row => row.settings));
  if (data.runs.length > 1) columns.push(text("run", "run", row => data.runs[row.run].name));
  columns.push({ ...text("networks", "networks", row => row.protocol), cell: row => make("td", row.protocol, "protocol") });
  columns.push({ title: "origin", cell: originCell });
  return columns;
}

function link(row, text, part = "") {
  const anchor = make("a", text);
  anchor.href = row.page + part;
  return anchor;
}

function methodCell(row) {
  const cell = make("th");
  cell.scope = "row";
  cell.append(link(row, row.method));
  if (row.bound) cell.append(make("small", "full dataset, upper bound"));
  return cell;
}

function valueCell(row, value) {
  if (!value && !row.state) return make("td", "–", "empty");
  const cell = make("td", "", value ? value[3] : "state");
  cell.append(link(row, value ? value[0] : row.state, "#provenance"));
  if (value?.[2]) cell.append(make("small", value[2]));
  if (!value) cell.title = row.reason;
  return cell;
}

function publishedCell(row) {
  const cell = make("td", "", "published");
  for (const [text, , title, source] of row.published) {
    const line = make("div", text);
    line.title = source;
    line.append(make("small", title));
    cell.append(line);
  }
  return cell;
}

function originCell(row) {
  const cell = make("td", "", "text");
  cell.append(link(row, "provenance", "#provenance"), " ", link(row, "command", "#command"));
  return cell;
}

// A row without a value goes last, whichever way the others are sorted.
function sorted(rows, column, ascending) {
  const missing = value => value === null || value === "";
  return [...rows].sort((a, b) => {
    const x = column.of(a), y = column.of(b);
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const order = typeof x === "number" ? x - y : compare(x, y);
    return ascending ? order : -order;
  });
}

function head(column, wanted) {
  const cell = make("th"), button = make("button", column.title), active = wanted.get("sort") === column.id;
  cell.scope = "col";
  if (!column.of) return Object.assign(cell, { textContent: column.title, className: "plain" });
  if (/^(value|published|ipc)/.test(column.id) === false) cell.className = "text";
  const ascending = wanted.get("order") === "ascending";
  if (active) cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const up = active ? !ascending : column.better === "low" || cell.className === "text";
  button.type = "button";
  button.addEventListener("click", () => {
    go({ sort: column.id, order: up ? "ascending" : "descending" });
    [...board.tHead.querySelectorAll("button")].find(other => other.dataset.id === column.id)?.focus();
  });
  button.dataset.id = column.id;
  cell.append(button);
  return cell;
}

function showBoard(wanted) {
  const view = data.views.find(one => one.name === wanted.get("view")) ?? data.views[0];
  if (!view) return void (byId("count").textContent = "There are no results.");
  const columns = columnsOf(view), column = columns.find(one => one.of && one.id === wanted.get("sort"));
  const chosen = view.rows.filter(row => passes(row, wanted));
  const rows = column ? sorted(chosen, column, wanted.get("order") === "ascending") : chosen;
  const shown = rows.slice(0, limit);
  byId("view").value = view.name;
  board.caption.textContent = view.title;
  const line = document.createElement("tr");
  line.append(...columns.map(one => head(one, wanted)));
  board.tHead.replaceChildren(line);
  board.tBodies[0].replaceChildren(...shown.map(row => {
    const line = make("tr", "", row.bound ? "bound" : "");
    line.append(...columns.map(one => one.cell(row)));
    return line;
  }));
  byId("count").textContent = `${rows.length} of ${view.rows.length} rows`;
  byId("more").hidden = shown.length === rows.length;
  byId("more").textContent = `Show more of ${rows.length} rows`;
  byId("warning").hidden = !rows.some(row => !data.runs[row.run].comparable);
  byId("notes").replaceChildren(...view.notes.map(note => make("li", note)));
}

function showCards(wanted) {
  const cards = [...byId("cards").children];
  for (const card of cards) card.hidden = !passes(card, wanted);
  byId("count").textContent = `${cards.filter(card => !card.hidden).length} of ${cards.length} sets`;
}

function show() {
  const wanted = state();
  setFilters(wanted);
  data ? showBoard(wanted) : showCards(wanted);
}

if (data) {
  byId("view").append(...data.views.map(view => new Option(view.title, view.name)));
  byId("view").addEventListener("input", event => go({ view: event.target.value, sort: "", order: "" }));
  byId("more").addEventListener("click", () => { limit *= 2; show(); });
}
fillFilters(data ? data.views.flatMap(view => view.rows) : [...byId("cards").children]);
window.addEventListener("hashchange", show);
show();
