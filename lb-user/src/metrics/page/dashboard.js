// The dashboard: asks every other second what is so, and draws it. Whatever it is told is put in as text, never as markup.
"use strict";

const PAUSE_MS = 2000;
const WORKERS_DRAWN = 16; // of an app in its picture
const WORKERS_LISTED = 100; // of an app in its table
const HISTORY_S = 3600;
const ORDER = ["failed", "backoff", "starting", "draining", "ready", "stopped"];

const at = (id) => document.getElementById(id);
let hour = []; // [{at, apps: {name: [clients, connections, memory]}}]
let last = null;
let paused = false;
const unfolded = new Map(); // by key, where somebody has opened or closed it

function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "path", "rect", "text", "line", "circle", "title"].includes(tag);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") element.addEventListener(...value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const count = (number) => Number(number).toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (number >= 1024 && at < units.length - 1) { number /= 1024; at += 1; }
  return `${number >= 100 || at === 0 ? Math.round(number) : number.toFixed(1)} ${units[at]}`;
}
function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}
const now = () => Date.now() / 1000;

// Asking.

async function ask(path, method = "GET") {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { method, headers, cache: "no-store", credentials: "omit", redirect: "error" });
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function look() {
  try {
    const answer = await ask(`api/status?since=${hour.at(-1)?.at ?? 0}`);
    if (answer.status === 401) return login();
    if (!answer.ok) return notice(`homing says: ${(await answer.text()).trim()}`);
    const told = await answer.json();
    // Two questions may have been under way at once.
    const news = told.history.filter((sample) => sample.at > (hour.at(-1)?.at ?? 0));
    hour = hour.concat(news).filter((sample) => sample.at > now() - HISTORY_S);
    last = told;
    notice("");
    at("login").hidden = true;
    if (!paused && getSelection().isCollapsed) draw();
  } catch {
    notice("homing does not answer; what is shown may have changed since.");
  }
}

async function turn() {
  if (!document.hidden && at("login").hidden) await look();
  setTimeout(turn, PAUSE_MS);
}

function login() {
  const wasShown = sessionStorage.getItem("token");
  sessionStorage.removeItem("token");
  at("refused").textContent = wasShown ? "That is not the token." : "";
  at("login").hidden = false;
  at("token").focus();
}

async function act(words, path) {
  if (!confirm(`${words}?`)) return;
  try {
    const answer = await ask(path, "POST");
    const told = await answer.text();
    notice(answer.ok ? "" : `not done: ${told.trim()}`);
  } catch {
    notice("homing does not answer.");
  }
  await look();
}

// Drawing.

function draw() {
  const { status } = last;
  at("version").textContent = status.version;
  const kernel = status.kernel_path;
  const path = kernel.active ? "kernel path active" : `HTTP path alone: ${kernel.reason ?? "off"}`;
  at("summary").textContent = `${path} · up ${span(status.uptime_seconds)} · ${plural(status.apps.length, "app")}`;
  const wanted = at("find").value.trim().toLowerCase();
  const isWanted = (app) => !wanted || app.name.includes(wanted) || app.workers.some((worker) => worker.id.includes(wanted));
  const focused = document.activeElement?.dataset?.key;
  const scrolled = new Map([...document.querySelectorAll(".wide")].map((box) => [box.dataset.key, box.scrollLeft]));
  at("apps").replaceChildren(...status.apps.filter(isWanted).map((app) => drawApp(app, wanted)), drawCounters(status));
  for (const box of document.querySelectorAll(".wide")) box.scrollLeft = scrolled.get(box.dataset.key) ?? 0;
  if (focused) [...document.querySelectorAll("[data-key]")].find((element) => element.dataset.key === focused)?.focus();
}

function drawApp(app, wanted) {
  const memory = app.workers.reduce((sum, worker) => sum + (worker.memory_bytes ?? 0), 0);
  const facts = [`path ${app.path}`, `affinity ${app.affinity}`, app.listen.join(" "), app.min === app.max ? plural(app.max, "worker") : `${app.min} to ${app.max} workers`];
  if (app.queued) facts.push(`${plural(app.queued, "request")} held`);
  const restart = last.actions && app.max > 0 &&
    button(`restart ${app.name}`, "Restart", () => act(`Restart the workers of ${app.name}, one after the other`, `api/restart?app=${encodeURIComponent(app.name)}`));
  return make("section", { "aria-label": app.name, tabindex: -1, "data-app": app.name, "data-key": `app ${app.name}` },
    make("header", {},
      make("h2", {}, app.name), state(app.restarting ? "restarting" : app.state),
      make("p", { class: "quiet" }, facts.join(" · ")), restart || null),
    app.restart_failed ? make("p", { class: "failed" }, `The last restart was stopped: ${app.restart_failed}`) : null,
    make("div", { class: "views" },
      drawFlow(app),
      drawTrace(app.name, "Sessions", (sample) => [sample[0], sample[1]], [app.clients, app.connections], count, [`${count(app.clients)} clients`, `${count(app.connections)} connections`]),
      drawTrace(app.name, "Memory", (sample) => [sample[2]], [memory], bytes, [bytes(memory)])),
    drawWorkers(app, wanted));
}

const state = (word) => make("span", { class: `state ${word}` }, word);
const button = (key, text, act) => make("button", { type: "button", "data-key": key, "aria-label": key, on: ["click", act] }, text);
const number = (worker) => worker.id.slice(worker.id.lastIndexOf("/") + 1);

// Clients on the left, workers on the right, a line as thick as what is open between them.
function drawFlow(app) {
  const busiest = [...app.workers].sort((a, b) => b.connections - a.connections || ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  const workers = busiest.slice(0, WORKERS_DRAWN).sort((a, b) => number(a) - number(b));
  const step = 26, height = Math.max(3, workers.length + (busiest.length > workers.length ? 1 : 0)) * step;
  const middle = height / 2, most = Math.max(1, ...workers.map((worker) => worker.connections));
  const words = `${plural(app.clients, "client")} of ${app.name}, ${plural(app.connections, "connection")} to ${plural(app.workers.length, "worker")}`;
  const svg = make("svg", { viewBox: `0 0 400 ${height}`, role: "img", "aria-label": words });
  workers.forEach((worker, index) => {
    const y = (workers.length === 1 ? middle : step * (index + 0.5));
    const http = worker.connections - worker.connections_kernel;
    const kind = worker.connections === 0 ? "none" : http > worker.connections_kernel ? "http" : "kernel";
    svg.append(
      make("path", { class: `flow ${kind}`, d: `M78 ${middle} C145 ${middle} 155 ${y} 220 ${y}`, "stroke-width": kind === "none" ? 1 : 1.5 + 8 * worker.connections / most }),
      make("rect", { class: `node ${worker.state}`, x: 220, y: y - 10, width: 178, height: 20, rx: 4 }),
      make("text", { x: 228, y: y + 4 }, `${number(worker)}  ${worker.state}`),
      make("text", { x: 391, y: y + 4, "text-anchor": "end", class: "quiet" }, `${count(worker.clients)} / ${count(worker.connections)}`));
  });
  if (busiest.length > workers.length) {
    svg.append(make("text", { x: 228, y: height - 8, class: "quiet" }, `and ${plural(busiest.length - workers.length, "more worker")}`));
  }
  svg.append(
    make("rect", { class: "node", x: 1, y: middle - 22, width: 77, height: 44, rx: 22 }),
    make("text", { x: 39, y: middle - 2, "text-anchor": "middle" }, count(app.clients)),
    make("text", { x: 39, y: middle + 13, "text-anchor": "middle", class: "quiet" }, "clients"));
  return make("figure", {},
    make("figcaption", {}, make("span", {}, make("i", { class: "key kernel" }), "kernel ", make("i", { class: "key http" }), "HTTP path"),
      make("span", {}, "clients / connections")), svg);
}

// The last hour, up to what is so now.
function drawTrace(app, title, values, current, unit, words) {
  const samples = hour.filter((sample) => sample.apps[app]).map((sample) => [sample.at, values(sample.apps[app])]).concat([[now(), current]]);
  const most = Math.max(1, ...samples.flatMap(([, each]) => each));
  const from = Math.min(now() - 120, samples[0][0]), width = now() - from;
  const svg = make("svg", { viewBox: "0 0 300 90", preserveAspectRatio: "none", role: "img", "aria-label": `${title} of ${app}: ${words.join(", ")}` },
    make("line", { class: "axis", x1: 0, x2: 300, y1: 89, y2: 89 }));
  ["first", "second"].slice(0, words.length).forEach((kind, index) => {
    const points = samples.map(([when, each]) => `${(300 * (when - from) / width).toFixed(1)} ${(88 - 84 * each[index] / most).toFixed(1)}`);
    svg.append(make("path", { class: `trace ${kind}`, d: `M${points.join(" L")}` }));
  });
  const keys = words.map((word, index) => make("span", {}, make("i", { class: `key ${["first", "second"][index]}` }), `${word} `));
  return make("figure", {}, make("figcaption", {}, make("span", {}, title, " ", ...keys)), svg,
    make("figcaption", {}, make("span", {}, `${span(width)} ago`), make("span", {}, `at most ${unit(most)}`)));
}

function drawWorkers(app, wanted) {
  const isWanted = (worker) => !wanted || app.name.includes(wanted) || worker.id.includes(wanted);
  const sorted = app.workers.filter(isWanted).sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || number(a) - number(b));
  const heads = [["worker"], ["state"], ["clients", true], ["connections", true], ["requests", true], ["restarts", true], ["memory", true], ["up", true], ["why"], ...(last.actions ? [[""]] : [])];
  const table = make("table", {},
    make("thead", {}, make("tr", {}, heads.map(([head, isNumber]) => make("th", { scope: "col", class: isNumber ? "number" : null }, head)))),
    make("tbody", {}, sorted.slice(0, WORKERS_LISTED).flatMap((worker) => drawWorker(worker, heads.length))));
  const rest = sorted.length - WORKERS_LISTED;
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `workers of ${app.name}`, "data-key": `table ${app.name}` },
    table, rest > 0 ? make("p", { class: "quiet" }, `and ${count(rest)} more; find them above`) : null);
}

// Its row; below it what a worker in need wrote last, across the width that is in sight.
function drawWorker(worker, columns) {
  const cell = (text) => make("td", { class: "number" }, text);
  const drained = worker.state === "draining" ? "undrain" : "drain";
  const up = worker.started_at && worker.pid ? span(now() - worker.started_at) : "–";
  const isInNeed = worker.last_output?.length > 0 && ["failed", "backoff"].includes(worker.state);
  const reasons = drawReasons(worker, isInNeed);
  const row = make("tr", {},
    make("td", {}, worker.id), make("td", {}, state(worker.state)),
    cell(count(worker.clients)), cell(count(worker.connections)), cell(count(worker.requests)), cell(count(worker.restarts)),
    cell(bytes(worker.memory_bytes)), cell(up), make("td", { class: "why" }, isInNeed ? worker.reason : reasons),
    last.actions ? make("td", {}, button(`${drained} ${worker.id}`, drained, () => act(`${drained} ${worker.id}`, `api/${drained}?worker=${encodeURIComponent(worker.id)}`))) : null);
  const below = isInNeed && make("tr", {}, make("td", { class: "below", colspan: columns }, make("div", {}, reasons)));
  return below ? [row, below] : [row];
}

function drawReasons(worker, isInNeed) {
  const lines = worker.last_output ?? [], past = worker.history ?? [];
  if (!lines.length && past.length < 2) return [worker.reason ?? ""];
  return [fold(`why ${worker.id}`, isInNeed, (!isInNeed && worker.reason) || (lines.length ? "its last lines" : "what it went through"),
    lines.length ? make("pre", { "aria-label": "last lines of its output" }, lines.join("\n")) : null,
    past.length ? make("pre", { "aria-label": "states that it went through" }, past.map((one) => `${new Date(one.at * 1000).toLocaleTimeString()}  ${one.state}`).join("\n")) : null)];
}

function fold(key, isOpen, summary, ...inside) {
  const details = make("details", { open: unfolded.get(key) ?? isOpen }, make("summary", { "data-key": key }, summary), ...inside);
  details.firstChild.addEventListener("click", () => unfolded.set(key, !details.open));
  return details;
}

function drawCounters(status) {
  const moved = Object.entries(status.counters).filter(([, value]) => value > 0);
  const tables = (status.tables ?? []).map((table) => [`${table.name} (of ${count(table.room)})`, table.used]);
  const list = make("dl", { class: "counters" },
    [...tables, ...moved].map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, count(value)))));
  return make("section", { "aria-label": "counters" }, fold("counters", false, "Tables and counters", list));
}

// Keys.

function step(by) {
  const sections = [...document.querySelectorAll("section[data-app]")];
  const here = sections.indexOf(document.activeElement?.closest("section"));
  const next = sections[Math.min(sections.length - 1, Math.max(0, here + by))];
  next?.focus();
  next?.scrollIntoView({ block: "start" });
}

function pause() {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", paused);
  at("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused && last) draw();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = { "/": () => at("find").focus(), p: pause, j: () => step(1), k: () => step(-1) }[event.key];
  if (key) { event.preventDefault(); key(); }
});
at("pause").addEventListener("click", pause);
at("find").addEventListener("input", () => last && draw());
at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value.trim());
  at("token").value = "";
  look();
});
turn();
