// SPDX-License-Identifier: Apache-2.0
// The page asks for the daemon's state once a second while somebody looks at it, and shows what came last. What
// is not known is shown as such, and what is old is said to be. Text goes into the document as text only.
"use strict";

const POLL_MS = 1000;
const PATIENCE_MS = 5000; // an answer that takes longer counts as none
const SEGMENTS_MAX = 12; // instances with a place of their own in the bar
const ROWS_MAX = 100; // that are shown before all are asked for
const CHART_MS = 15 * 60 * 1000;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
let state = null; // the last one that came
let lostSince = null; // when answers ceased to come
let sort = { key: "used_bytes", down: true };
let showAll = false;

// ---- Words ----

const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];

function bytes(n) {
  if (typeof n !== "number") return "–";
  for (const [name, size] of UNITS) {
    if (n >= size) {
      const value = n / size;
      return `${value.toFixed(value < 100 && value % 1 ? 1 : 0)} ${name}`;
    }
  }
  return n === 0 ? "0" : `${n} B`;
}

function duration(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function set(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// The children of `parent` become these; those that are there already keep focus and scrolling.
function fill(parent, children) {
  children.forEach((child, i) => {
    const old = parent.children[i];
    if (!old) parent.append(child);
    else if (old.outerHTML !== child.outerHTML) old.replaceWith(child);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

// ---- The GPU ----

function parts(s) {
  const users = s.instances
    .map((i) => ({ name: i.ipc, bytes: i.granted_bytes + i.leased_bytes }))
    .filter((u) => u.bytes > 0)
    .sort((a, b) => b.bytes - a.bytes);
  const list = users.slice(0, SEGMENTS_MAX).map((u) => ({ ...u, color: `c-${hue(u.name)}` }));
  const rest = users.slice(SEGMENTS_MAX);
  const add = (name, n, color) => n > 0 && list.push({ name, bytes: n, color });
  add(`${rest.length} more instances`, rest.reduce((sum, u) => sum + u.bytes, 0), "c-7");
  add("Pool", s.pool_bytes + s.creating_bytes, "c-pool");
  add("Leaving", s.limbo_bytes + s.destroying_bytes, "c-leaving");
  add("Other programs", s.foreign_bytes, "c-foreign");
  add("Free", Math.max(0, s.total_bytes - list.reduce((sum, p) => sum + p.bytes, 0)), "c-free");
  return list;
}

// An instance keeps its colour as long as the page lives, whoever comes and goes.
const hues = new Map();
function hue(name) {
  if (!hues.has(name)) hues.set(name, hues.size % 7);
  return hues.get(name);
}

function showGpu(s) {
  const list = parts(s);
  const bar = $("bar");
  fill(bar, list.map((part) => {
    const share = part.bytes / s.total_bytes;
    const span = make("span", `${part.color}${share < 0.07 || part.color === "c-free" ? " tiny" : ""}`, part.name);
    span.title = `${part.name}: ${bytes(part.bytes)}`;
    span.style.width = `${100 * share}%`;
    return span;
  }));
  bar.setAttribute("aria-label", list.map((part) => `${part.name} ${bytes(part.bytes)}`).join(", "));
  fill($("legend"), list.map((part) => {
    const item = make("li");
    item.append(make("i", part.color), make("b", "", part.name), make("span", "", bytes(part.bytes)));
    return item;
  }));
  const share = s.total_bytes ? Math.min(1, (s.budget_bytes + s.foreign_bytes) / s.total_bytes) : 1;
  $("budget-mark").hidden = share >= 1;
  $("budget-mark").style.left = `${100 * share}%`;
  $("budget-mark").classList.toggle("right", share > 0.85);
  set("budget-text", `budget ${bytes(s.budget_bytes)}`);
  set("lent", bytes(s.granted_bytes));
  set("total", bytes(s.total_bytes));
  set("tile-budget", bytes(s.budget_bytes));
  set("tile-granted", bytes(s.granted_bytes));
  set("tile-leased", bytes(s.leased_bytes));
  set("tile-pool", bytes(s.pool_bytes + s.creating_bytes));
  set("tile-leaving", bytes(s.limbo_bytes + s.destroying_bytes));
  set("tile-foreign", bytes(s.foreign_bytes));
  set("tile-free", bytes(s.free_bytes));
}

// ---- Instances ----

const COLUMNS = [
  { key: "ipc", title: "Instance", text: true },
  { title: "Use of its limit" },
  { key: "used_bytes", title: "Used", num: true },
  { key: "limit_bytes", title: "Limit", num: true, c: 2 },
  { key: "cached_bytes", title: "Cached", num: true, c: 3 },
  { key: "wanted_bytes", title: "Wanted", num: true, c: 3 },
  { key: "processes", title: "Processes", num: true, c: 3 },
  { key: "flags", title: "State", c: 2 },
];
const SOURCES = { admin: "set with kvctl", config: "configuration", engine: "its own wish", budget: "the budget" };

function flags(i) {
  const list = [];
  if (i.over_limit) list.push(["bad", "over limit"]);
  if (i.missed_notice) list.push(["bad", "missed notice"]);
  if (i.frozen) list.push(["bad", "frozen"]);
  if (i.limbo_bytes > 0) list.push(["warn", `${bytes(i.limbo_bytes)} leaving`]);
  if (i.pending_bytes > 0 || i.wanted_bytes > 0) list.push(["warn", "waiting"]);
  if (i.reserved_bytes > 0) list.push(["", `${bytes(i.reserved_bytes)} reserved`]);
  if (i.pinned_bytes > 0) list.push(["", `${bytes(i.pinned_bytes)} pinned`]);
  return list;
}

function meter(i) {
  const box = make("div", `meter${i.over_limit ? " over" : ""}`);
  const add = (n, color) => {
    const span = make("span", color);
    span.style.width = `${(100 * n) / (Math.max(i.limit_bytes, i.used_bytes) || 1)}%`;
    if (n > 0) box.append(span);
  };
  const busy = Math.max(0, i.granted_bytes - i.cached_bytes);
  add(busy, "c-granted");
  add(i.granted_bytes - busy, "c-cached");
  add(i.leased_bytes + i.pending_bytes + i.reserved_bytes, "c-leased");
  add(i.limbo_bytes, "c-leaving");
  box.title = `in use ${bytes(busy)}, cached ${bytes(i.cached_bytes)}, set aside ${bytes(i.leased_bytes + i.reserved_bytes)}`;
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", `${bytes(i.used_bytes)} of ${bytes(i.limit_bytes)}: ${box.title}`);
  return box;
}

function row(i) {
  const tr = make("tr");
  const name = make("td", "name");
  name.append(make("b", "", i.ipc), make("small", "", i.domain));
  const use = make("td", "use");
  use.append(meter(i));
  const limit = make("td", "num c2", bytes(i.limit_bytes));
  limit.append(make("small", "", SOURCES[i.limit_source] || i.limit_source));
  const state_ = make("td", "flags");
  for (const [kind, text] of flags(i)) state_.append(make("span", `chip ${kind}`.trim(), text));
  const used = make("td", "num", bytes(i.used_bytes));
  used.append(make("small", "of", `of ${bytes(i.limit_bytes)}`));
  tr.append(name, use, used, limit);
  for (const key of ["cached_bytes", "wanted_bytes"]) tr.append(make("td", "num c2 c3", bytes(i[key])));
  tr.append(make("td", "num c2 c3", String(i.processes)), state_);
  return tr;
}

function compare(a, b) {
  const value = (i) => (sort.key === "flags" ? flags(i).length : i[sort.key]);
  const [x, y] = [value(a), value(b)];
  const order = typeof x === "string" ? x.localeCompare(y) : x - y;
  return (sort.down ? -order : order) || a.ipc.localeCompare(b.ipc) || a.domain.localeCompare(b.domain);
}

function showInstances(s) {
  const wanted = $("filter").value.toLowerCase();
  const list = s.instances.filter((i) => `${i.domain}/${i.ipc}`.toLowerCase().includes(wanted)).sort(compare);
  const shown = showAll ? list : list.slice(0, ROWS_MAX);
  fill($("rows"), shown.map(row));
  set("count", String(s.instances.length));
  $("table").hidden = list.length === 0;
  $("no-rows").hidden = list.length > 0;
  set("no-rows", s.instances.length ? "No instance has such a name." : "No engine has asked for memory yet.");
  $("more").hidden = list.length <= shown.length;
  set("more", `Show all ${list.length}`);
}

function makeHeads() {
  for (const column of COLUMNS) {
    const th = make("th", `${column.num ? "num" : ""}${column.c === 3 ? " c3" : ""}${column.key ? "" : " plain"}`.trim());
    th.scope = "col";
    if (column.key) {
      const button = make("button", "", column.title);
      button.type = "button";
      button.addEventListener("click", () => sortBy(column));
      th.append(button);
      th.dataset.key = column.key;
    } else {
      th.textContent = column.title;
    }
    $("heads").append(th);
  }
  markHeads();
}

function markHeads() {
  for (const th of $("heads").children) {
    if (!th.dataset.key) continue;
    const here = th.dataset.key === sort.key;
    th.setAttribute("aria-sort", here ? (sort.down ? "descending" : "ascending") : "none");
  }
}

function sortBy(column) {
  sort = { key: column.key, down: sort.key === column.key ? !sort.down : !column.text };
  markHeads();
  if (state) showInstances(state);
}

// ---- History ----

const LAYERS = ["granted", "leased", "pool", "leaving", "foreign"];
const PLACE = { left: 58, right: 8, top: 8, bottom: 22 };

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Between two samples it was as the first of them says: steps, not slopes.
function showHistory(s) {
  const box = $("chart");
  const [width, height] = [box.clientWidth, box.clientHeight];
  const end = s.realtime_ms;
  const begin = Math.max(end - CHART_MS, Math.min(end - 60000, s.history.length ? s.history[0][0] : end));
  const x = (ms) => PLACE.left + ((Math.max(begin, ms) - begin) / (end - begin)) * (width - PLACE.left - PLACE.right);
  const y = (n) => height - PLACE.bottom - (n / (s.total_bytes || 1)) * (height - PLACE.top - PLACE.bottom);
  const first = Math.max(0, s.history.findIndex((h) => h[0] >= begin) - 1);
  const samples = s.history.slice(s.history.some((h) => h[0] >= begin) ? first : -1);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  for (const share of [0, 0.5, 1]) {
    const at = y(share * s.total_bytes);
    root.append(svg("line", { x1: PLACE.left, x2: width - PLACE.right, y1: at, y2: at }));
    root.append(svg("text", { x: PLACE.left - 8, y: at + 4, "text-anchor": "end" }, bytes(share * s.total_bytes)));
  }
  const line = (top) => samples.map((h, k) => {
    const until = k + 1 < samples.length ? samples[k + 1][0] : end;
    return `${x(h[0]).toFixed(1)},${y(top(h)).toFixed(1)} ${x(until).toFixed(1)},${y(top(h)).toFixed(1)}`;
  });
  const sum = (h, n) => h.slice(1, n + 1).reduce((a, b) => a + b, 0);
  LAYERS.forEach((name, n) => {
    const above = line((h) => sum(h, n + 1));
    const below = line((h) => sum(h, n)).map((pair) => pair.split(" ").reverse().join(" ")).reverse();
    if (above.length) root.append(svg("path", { class: `f-${name}`, d: `M${above.join(" L")} L${below.join(" L")} Z` }));
  });
  const budget = line((h) => Math.min(s.total_bytes, h[6] + h[5]));
  if (budget.length) root.append(svg("path", { class: "f-budget", d: `M${budget.join(" L")}` }));
  root.append(svg("text", { x: PLACE.left, y: height - 6 }, clock(begin)));
  root.append(svg("text", { x: width - PLACE.right, y: height - 6, "text-anchor": "end" }, clock(end)));
  box.replaceChildren(root);
  const most = samples.reduce((m, h) => Math.max(m, h[1]), 0);
  box.setAttribute("aria-label", `The last ${duration(end - begin)}: at most ${bytes(most)} lent, now ${bytes(s.granted_bytes)}`);
}

// ---- Events ----

const BAD = ["reload_failed", "lost", "frozen", "over_limit", "missed_notice", "scribbled", "violation", "driver_failed", "over_budget"];
const WARN = ["refused", "stopping", "deleted", "suppressed"];
const GOOD = ["freed", "within_limit", "within_budget", "driver_recovered", "started"];

function eventItem(e) {
  const kind = BAD.includes(e.kind) ? "bad" : WARN.includes(e.kind) ? "warn" : GOOD.includes(e.kind) ? "good" : "";
  const item = make("li");
  const time = make("time", "", clock(e.realtime_ms));
  time.dateTime = new Date(e.realtime_ms).toISOString();
  time.title = new Date(e.realtime_ms).toLocaleString();
  const label = make("span");
  label.append(make("span", `chip ${kind}`.trim(), e.kind.replaceAll("_", " ")));
  const text = make("p");
  if (e.ipc) text.append(make("b", "", e.ipc), " ");
  text.append(e.text);
  item.append(time, label, text);
  return item;
}

function showEvents(s) {
  fill($("events"), s.events.slice().reverse().map(eventItem));
  $("no-events").hidden = s.events.length > 0;
}

// ---- The whole ----

function show(s) {
  set("gpu-name", s.gpu.name);
  set("gpu-sub", `GPU ${s.gpu.index} · ${s.gpu.uuid}${s.gpu.emulated ? " · emulated" : ""} · up ${duration(s.uptime_ms)}`);
  set("version", `kvcachedd ${s.daemon_version}`);
  document.title = `${bytes(s.granted_bytes)} of ${bytes(s.total_bytes)} · GPU ${s.gpu.index} · kvcached`;
  showGpu(s);
  showInstances(s);
  showHistory(s);
  showEvents(s);
}

function say(what, text, banner) {
  document.body.className = what;
  set("link-text", text);
  $("banner").hidden = !banner;
  set("banner", banner || "");
}

function sayState(s) {
  if (s.draining) say("live", "Stopping", "The daemon is stopping.");
  else if (s.driver_silent) say("live", "Live", "The driver doesn't say how much memory is free; what is shown of that is old.");
  else say("live", "Live");
}

function sayLost(why) {
  lostSince = lostSince || Date.now();
  const known = state ? `What is shown is as of ${clock(state.realtime_ms)}.` : "Nothing is known yet.";
  say(state ? "lost" : "lost unknown", "No connection", `${why} since ${clock(lostSince)}. ${known}`);
}

async function ask() {
  let why = "The daemon cannot be reached";
  try {
    const answer = await fetch("api/v1/state", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) {
      state = await answer.json();
      lostSince = null;
      show(state);
      sayState(state);
      return;
    }
    why = `The daemon answers ${answer.status}`;
  } catch {
    // It is told below.
  }
  sayLost(why);
}

let timer = null;
async function poll() {
  clearTimeout(timer);
  timer = null;
  await ask();
  if (!document.hidden && timer === null) timer = setTimeout(poll, POLL_MS);
}

makeHeads();
$("filter").addEventListener("input", () => state && showInstances(state));
$("more").addEventListener("click", () => {
  showAll = true;
  if (state) showInstances(state);
  $("instances").focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});
addEventListener("resize", () => state && showHistory(state));
poll();
