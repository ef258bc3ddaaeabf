// The page: its address is its state; everything shown follows from it.

import { chips, detail, h, number, stepsPanel } from "/detail.js";
import { kChange, matrix, valueByK } from "/plots.js";

const $ = (id) => document.getElementById(id);
const PAGE = 50;
const FILTERS = ["q", "task", "type", "needed", "ak", "bk", "amin", "amax", "bmin", "bmax", "change",
  "sort"];
let run = null;      // the server's answer about the run
let found = null;    // the questions of this page
let foundKey = null; // what they were asked by
let shownId = null;  // of the question that is shown in full
let asking = null, askingDetail = null, askingSteps = null;

// ------------------------------------------------------------------ state

const state = () => Object.fromEntries(new URLSearchParams(location.search));

function link(changes, from = state()) {
  const next = { ...from, ...changes };
  // A side that is empty stays in the address: left out, it would be the run's own choice.
  const kept = Object.entries(next).filter(([name, value]) => name === "a" || name === "b" ||
    !(value === "" || value === null || value === undefined ||
    (name === "change" && value === "any") || (name === "sort" && value === "file") ||
    (name === "offset" && `${value}` === "0")));
  const text = new URLSearchParams(kept).toString();
  return text ? `?${text}` : location.pathname;
}

function go(changes, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", link(changes));
  return follow();
}

async function get(path, parameters, signal, headers = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, v]) => v)).toString();
  const response = await fetch(`${path}${query ? `?${query}` : ""}`, { signal, headers });
  const value = await response.json();
  if (!response.ok) throw Object.assign(new Error(value.error), { status: response.status });
  return value;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// ------------------------------------------------------------------ the run

const current = () => run.sets.find((one) => one.name === state().set) || run.sets[0];

function sides() {
  const set = current(), names = new Set(set.sides.map((side) => side.name)), at = state();
  const a = at.a === undefined ? set.a : at.a, b = at.b === undefined ? set.b : at.b;
  return { a: names.has(a) ? a : "", b: names.has(b) ? b : "" };
}

const side = (name) => current().sides.find((one) => one.name === name);

async function look() {
  let delay = 5000;
  try {
    const before = run ? run.version : 0;
    const now = await get("/api/run", {});
    if (now.reading) {
      const part = Math.floor(100 * now.reading.part);
      say(`Reading the run's records: ${part} % (${now.reading.why})` +
        (now.version ? "; what is shown was read before." : ""));
      delay = 400;
    } else if (now.failed) say(now.failed, true);
    else if (now.version !== before && before) say("The run's records changed and were read again.");
    else if (now.version !== before) say("");
    if (now.version !== before || !run) {
      run = now;
      describe();
      if (run.version) await follow(true);
    }
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer; is it still running?", true);
  }
  setTimeout(look, delay);
}

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([v, text]) => h("option", { value: v }, text)));
  select.value = value;
}

function describe() {
  $("run").textContent = run.run;
  $("run").title = run.path;
  document.title = `${run.run} · dynarag explore`;
  options($("set"), run.sets.map((one) => [one.name,
    `${one.name} (${one.questions.toLocaleString("en")})`]), "");
}

function describeSet() {
  const set = current(), { a, b } = sides(), form = $("filters"), at = state();
  $("set").value = set.name;
  const named = set.sides.map((one) => [one.name, one.name]);
  options($("a"), [["", "nothing"], ...named], a);
  options($("b"), [["", "nothing"], ...named], b);
  options(form.task, [["", "any"], ...set.tasks.map((x) => [x, x])], at.task || "");
  options(form.type, [["", "any"], ...set.types.map((x) => [x, x])], at.type || "");
  const word = { a: side(a)?.value || "score", b: side(b)?.value || "score" };
  const sorts = [["file", "the file's order"], ["needed", "needed k"]];
  for (const [letter, name, what] of [["a", a, "before"], ["b", b, "after"]]) {
    if (!name) continue;
    const when = a && b ? ` ${what}` : "";
    sorts.push([`${letter}.k`, `k${when}`], [`${letter}.value`, `${word[letter]}${when}`]);
    if (word[letter] === "reward") sorts.push([`${letter}.spread`, `spread of rewards${when}`]);
  }
  if (a && b) sorts.push(["change", "gain from before to after"]);
  const both = sorts.flatMap(([v, text]) => v === "file" ? [[v, text]]
    : [[`-${v}`, `${text}, highest first`], [v, `${text}, lowest first`]]);
  options(form.sort, both, at.sort || "file");
  for (const node of form.querySelectorAll("[data-for]")) {
    const needs = node.dataset.for;
    node.hidden = (needs === "a" && !a) || (needs === "b" && !b) || (needs === "both" && !(a && b)) ||
      (needs === "task" && set.tasks.length < 2) || (needs === "type" && set.types.length < 2);
  }
  for (const node of form.querySelectorAll("[data-value]")) {
    const letter = node.dataset.value, text = word[letter];
    const when = a && b ? (letter === "a" ? " before" : " after") : "";
    node.textContent = `${text[0].toUpperCase()}${text.slice(1)}${when}`;
  }
  for (const name of FILTERS) {
    if (document.activeElement !== form[name]) form[name].value = at[name] ||
      { change: "any", sort: "file" }[name] || "";
  }
  const notes = $("notes");
  notes.hidden = !set.notes.length;
  notes.querySelector("summary").textContent =
    `${set.notes.length} remark${set.notes.length > 1 ? "s" : ""} about these files`;
  notes.querySelector("ul").replaceChildren(...set.notes.map((text) => h("li", {}, text)));
}

// ------------------------------------------------------------------ the list

async function follow(again = false) {
  if (!run || !run.version) return;
  describeSet();
  const at = state(), { a, b } = sides();
  document.body.toggleAttribute("data-open", Boolean(at.id));
  asking?.abort();
  asking = new AbortController();
  const parameters = { set: current().name, a, b, offset: at.offset, limit: `${PAGE}` };
  for (const name of FILTERS) parameters[name] = at[name];
  try {
    // Another question of the same list asks for that question alone.
    const key = JSON.stringify([parameters, run.version]);
    if (key !== foundKey || again) {
      found = await get("/api/questions", parameters, asking.signal);
      foundKey = key;
      if ($("status").classList.contains("wrong")) say("");
    }
    rows();
    if (at.id) await question(at.id, again);
    else overview();
  } catch (error) {
    if (error.name === "AbortError") return;
    foundKey = null;
    if (error.status === 409) return;  // it is being read; look() comes back
    say(error.message, true);
    if (error.status === 400 && !at.id) $("side").replaceChildren();
  }
}

function pair(row, name, digits) {
  const show = (x) => (x === undefined ? "–" : x.failed ? "failed"
    : name === "k" ? (x.k ?? "?") : number(x.value, digits));
  const { a, b } = sides();
  const cells = [];
  if (a) cells.push(h("span", { class: b ? "a-ink" : null }, `${show(row.a)}`));
  if (a && b) cells.push(h("span", { class: "arrow", "aria-hidden": "true" }, "→"),
    h("span", { class: "unseen" }, " to "));
  if (b) cells.push(h("span", { class: a ? "b-ink" : null }, `${show(row.b)}`));
  return h("td", { class: "n" }, cells);
}

function rows() {
  const at = state(), { a, b } = sides();
  const value = side(b)?.value || side(a)?.value || "score";
  const head = ["question", "needs", ...(a || b ? ["k", value] : [])];
  document.querySelector("#rows thead").replaceChildren(h("tr", {}, head.map((name) =>
    h("th", { scope: "col", class: name === "question" ? null : "n" }, name))));
  document.querySelector("#rows tbody").replaceChildren(...found.rows.map((row) =>
    h("tr", { "aria-current": row.id === at.id ? "true" : null, "data-id": row.id },
      h("td", {}, h("a", { href: link({ id: row.id, steps: "" }), dir: "auto" },
        row.text || row.id)),
      h("td", { class: "n" }, row.needed === null ? "?" : `${row.needed}`),
      a || b ? [pair(row, "k"), pair(row, "value", 2)] : null)));
  const offset = Number(at.offset || 0), last = Math.min(offset + found.rows.length, found.total);
  $("found").textContent = found.total
    ? `${(offset + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ` +
      `${found.total.toLocaleString("en")} found, of ${found.of.toLocaleString("en")} questions`
    : `None found, of ${found.of.toLocaleString("en")} questions`;
  const turn = (text, to, title) => h("button", { type: "button", title, disabled: to < 0 ||
    to >= found.total, onclick: () => go({ offset: to }) }, text);
  $("pager").replaceChildren(turn("Previous", offset ? Math.max(offset - PAGE, 0) : -1, "p"),
    turn("Next", offset + PAGE, "n"));
}

// ------------------------------------------------------------------ the overview

function tile(value, what) {
  return h("div", { class: "tile" }, h("b", {}, value), h("span", {}, what));
}

function overview() {
  shownId = null;
  const { a, b } = sides(), { sides: counted, compared } = found.overview;
  const first = counted.a, second = counted.b, last = second || first;

  const tiles = [tile(found.total.toLocaleString("en"), "questions found")];
  if (last) {
    tiles.push(tile(second && first ? `${number(first.mean_k)} → ${number(second.mean_k)}`
      : number(last.mean_k), "passages chosen, mean"));
    tiles.push(tile(number(last.mean_needed), "passages needed, mean"));
    const words = [side(a)?.value, side(b)?.value].filter(Boolean);
    if (new Set(words).size === 1) {
      tiles.push(tile(first && second ? `${number(first.mean_value, 3)} → ${number(second.mean_value, 3)}`
        : number(last.mean_value, 3), `${words[0]}, mean`));
    }
    const failed = (first?.failed || 0) + (second?.failed || 0);
    if (failed) tiles.push(tile(`${failed}`, "failed"));
  }
  if (compared) {
    tiles.push(tile(compared.list_changed.toLocaleString("en"), "lists changed"));
    if (compared.better !== null) {
      tiles.push(tile(`${compared.better.toLocaleString("en")} / ` +
        compared.worse.toLocaleString("en"), "became better / worse"));
    }
  }
  const panels = [];
  const named = (label) => (first && second ? `${label}: ` : "");
  const to = (changes) => link({ ...changes, offset: "", id: "", steps: "" });
  const what = { a: side(a)?.value, b: side(b)?.value };
  const each = [["a", first, a, "Before"], ["b", second, b, "After"]].filter(([, x]) => x && x.lists);
  for (const [letter, counts, name, label] of each) {
    panels.push(h("figure", {}, h("figcaption", {}, `${named(label)}k chosen against needed`,
      h("span", { class: "quiet" }, `${name}; % of the lists of a needed k` +
        (what[letter] === "reward" ? ", all sampled ones" : ""))), matrix(counts, letter, each.map(([, x]) => x), to)));
  }
  const same = what.a === what.b;
  const most = (counts) => Math.max(...counts.by_k.map(([, , mean]) => mean), 0);
  for (const [letter, counts, name, label] of each) {
    if (!counts.by_k.length) continue;
    const high = same && first && second ? Math.max(most(first), most(second)) : most(counts);
    const word = what[letter];
    panels.push(h("figure", {}, h("figcaption", {}, `${named(label)}mean ${word} by k`,
      h("span", { class: "quiet" }, name)), valueByK(counts, letter, word, high, to)));
  }
  if (compared && compared.k_change.length) {
    panels.push(h("figure", {}, h("figcaption", {}, "How many lists became longer or shorter",
      h("span", { class: "quiet" }, `${a} to ${b}`)), kChange(compared, to)));
  }
  $("side").replaceChildren(h("h2", {}, "Overview of the questions found"),
    h("div", { class: "tiles" }, tiles), h("div", { class: "panels" }, panels),
    h("p", { class: "small quiet" }, "Every cell and bar leads to its questions."));
}

// ------------------------------------------------------------------ one question

async function question(id, again) {
  const at = state();
  const key = JSON.stringify([current().name, id, sides(), run.version]);
  if (key !== shownId || again) {
    askingDetail?.abort();
    askingDetail = new AbortController();
    const value = await get("/api/question", { set: current().name, id }, askingDetail.signal);
    const actions = {
      close: () => go({ id: "", steps: "" }),
      steps: (name, list) => go({ steps: `${name}|${list.join(",")}` }),
    };
    $("side").replaceChildren(...detail(value, sides(), actions));
    shownId = key;
    if (matchMedia("(max-width: 60rem)").matches) scrollTo(0, 0);
    $("side").scrollTop = 0;
  }
  await steps(id, at.steps || "");
}

async function steps(id, asked) {
  const place = $("steps");
  if (!place || place.dataset.shown === asked) return;
  place.dataset.shown = asked;
  askingSteps?.abort();
  if (!asked) return place.replaceChildren();
  const cut = asked.lastIndexOf("|"), name = asked.slice(0, cut), list = asked.slice(cut + 1);
  const ids = list.split(",").filter(Boolean).map(Number);
  place.replaceChildren(h("p", { class: "quiet" }, "Computing the steps of ", chips(ids, null),
    " (the first time, the model is loaded and compiled) …"));
  askingSteps = new AbortController();
  try {
    const value = await get("/api/steps", { set: current().name, id, side: name, list },
      askingSteps.signal, { "X-Explore": "1" });
    if (place.dataset.shown === asked) place.replaceChildren(stepsPanel(value, ids, name));
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(h("p", { class: "bad" }, error.message));
  }
}

// ------------------------------------------------------------------ what people do

function move(by) {
  if (!found || !found.rows.length) return;
  const at = found.rows.findIndex((row) => row.id === state().id);
  const next = at < 0 ? (by > 0 ? 0 : found.rows.length - 1) : at + by;
  const row = found.rows[next];
  if (!row) return;
  go({ id: row.id, steps: "" });
  const line = [...document.querySelectorAll("#rows tbody tr")][next];
  line?.scrollIntoView({ block: "nearest" });
}

function theme(next) {
  const order = ["system", "light", "dark"];
  let now = "system";
  try { now = localStorage.getItem("theme") || "system"; } catch { /* none is kept */ }
  if (next) {
    now = order[(order.indexOf(now) + 1) % order.length];
    try { localStorage.setItem("theme", now); } catch { /* for this page only */ }
  }
  if (now === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  $("theme").textContent = `theme: ${now}`;
}

const KEYS = {
  "/": () => { $("q").focus(); $("q").select(); },
  j: () => move(1),
  k: () => move(-1),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  n: () => $("pager").lastChild?.click(),
  p: () => $("pager").firstChild?.click(),
  s: () => (document.querySelector("[data-steps=b]:enabled") ||
    document.querySelector("[data-steps]:enabled"))?.click(),
  o: () => go({ id: "", steps: "" }),
  c: () => $("clear").click(),
  t: () => theme(true),
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (state().id) go({ id: "", steps: "" });
    return;
  }
  if (typing || (event.key.startsWith("Arrow") && !event.target.matches("body, #rows *, #main"))) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});

document.addEventListener("click", (event) => {
  const a = event.target.closest?.("a[href^='?']");
  if (!a || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", a.getAttribute("href"));
  follow();
});

let typed = null;
$("filters").addEventListener("input", (event) => {
  const { name, value } = event.target;
  clearTimeout(typed);
  if (!event.target.checkValidity()) return;
  const wait = event.target.matches("select") ? 0 : 120;
  typed = setTimeout(() => go({ [name]: value.trim(), offset: "" }, { replace: true }), wait);
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", (event) => {
  event.preventDefault();
  document.activeElement?.blur();
  go({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), offset: "" });
});
$("set").addEventListener("change", (event) => {
  history.pushState(null, "", link({ set: event.target.value }, {}));
  follow();
});
for (const letter of ["a", "b"]) {
  $(letter).addEventListener("change", (event) => {
    const reset = Object.fromEntries([`${letter}k`, `${letter}min`, `${letter}max`, "change", "sort",
      "offset", "steps"].map((name) => [name, ""]));
    go({ ...reset, [letter]: event.target.value });
  });
}
$("theme").addEventListener("click", () => theme(true));
$("help").addEventListener("click", () => $("keys").showModal());
addEventListener("popstate", () => follow());

theme(false);
look();
