// Shows what there is, every few seconds. Text goes in as text, never as markup. It only reads.
"use strict";

const EVERY_MS = 10000;
const ALERTS_EVERY = 6;
const PAGE = 100;
const PAGE_MAX = 10000;

const size = (bytes) => {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return (unit ? bytes.toFixed(1) : bytes) + " " + units[unit];
};
const time = (ms) => ms ? new Date(ms).toLocaleString() : "–";
const percent = (part, whole) => whole ? Math.round(100 * part / whole) + " %" : "–";

const make = (kind, text, className) => {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};

// How full something is: a bar and the figure.
const bar = (used, whole) => {
  if (!whole) return "–";
  const cell = make("span");
  const meter = make("meter");
  Object.assign(meter, { min: 0, max: whole, low: 0.8 * whole, high: 0.95 * whole, optimum: 0, value: used });
  cell.append(meter, " " + percent(used, whole));
  return cell;
};
const health = (word) => make("span", word, word === "online" ? "" : word === "offline" ? "bad" : "warn");
const state = (clone) => {
  if (clone.lost_tail) return make("span", "writes may be lost: accept-loss", "bad");
  if (clone.hold) return make("span", "held: " + clone.hold, "warn");
  if (clone.pending_version) return make("span", "waits for version " + clone.pending_version + (clone.pending_failed ? ": " + clone.pending_failed : ""), "warn");
  return clone.attached.length ? "in use by " + clone.attached.join(", ") : clone.may_run ?? "";
};
const progress = (job) => job.total ? percent(job.done, job.total) : "–";

// Title, path, columns (heading, what to show), and what is said when there is nothing.
const lists = [
  ["Datastores", "datastores", [
    ["name"], ["health", (d) => health(d.health)], ["used", (d) => d.capacity && d.free !== null ? bar(d.capacity - d.free, d.capacity) : "–"],
    ["free", (d) => size(d.free)], ["capacity", (d) => size(d.capacity)], ["bases"], ["clones"], ["url"], ["trouble", (d) => d.trouble ?? "", "text"],
  ], "clonegate datastore add NAME URL"],
  ["Templates", "templates", [
    ["name"], ["published"], ["versions", (t) => t.versions.length], ["size", (t) => size(t.versions.at(-1)?.size)],
    ["stored", (t) => size(t.versions.reduce((sum, v) => sum + v.stored_bytes, 0))],
    ["clones", (t) => t.versions.reduce((sum, v) => sum + v.clones, 0)], ["description", (t) => t.description, "text"],
  ], "clonegate template import NAME IMAGE"],
  ["Pools", "pools", [
    ["name"], ["template"], ["clones"], ["most", (p) => p.max], ["given", (p) => p.assigned], ["free"], ["outdated"], ["assignment"],
    ["maintenance", (p) => p.maintenance ? make("span", "on", "warn") : "off"],
  ]],
  ["Clones", "clones", [
    ["name"], ["template", (c) => c.kind === "full" ? "–" : c.template + ":" + c.version], ["datastore"], ["size", (c) => size(c.size)],
    ["written", (c) => size(c.delta_bytes)], ["durability"], ["lifetime"], ["pool", (c) => c.pool ?? ""], ["state", state, "text"],
  ], "clonegate clone create NAME --template TEMPLATE"],
  ["Bases", "bases", [
    ["id"], ["template", (b) => b.template + ":" + b.version], ["datastore"], ["state", (b) => make("span", b.state, b.state === "orphan" ? "warn" : "")],
    ["slots", (b) => bar(b.taken, b.slots)], ["taken"], ["size", (b) => size(b.size)], ["kind"],
  ]],
  ["Data disks", "disks", [["name"], ["state"], ["size", (d) => size(d.size)], ["clone", (d) => d.clone ?? ""], ["datastore"]]],
  ["Jobs under way", "jobs?under_way=true", [
    ["kind"], ["subject"], ["state"], ["done", progress], ["note", (j) => j.note ?? "", "text"], ["host"], ["since", (j) => time(j.created_ms)],
  ]],
  ["Lately", "audit", [["when", (a) => time(a.at_ms)], ["who", (a) => a.by], ["action"], ["object"], ["outcome", (a) => make("span", a.outcome, a.outcome === "ok" ? "" : "warn")], ["reason", (a) => a.reason ?? "", "text"]]],
];
const limits = new Map([["audit", 10]]);
const opened = new Set();

// What a machine, or somebody who wants to look, does with a clone.
const uses = (clone) => {
  const disk = location.origin + clone.disk;
  const lines = [
    "curl -s -r 0-511 " + disk + " | xxd | head", "qemu-img info " + disk, "iPXE: sanboot " + disk,
    "NBD: nbd://" + location.hostname + "/" + clone.name, "clonegate clone show " + clone.name,
  ];
  const row = make("tr");
  const cell = make("td");
  cell.colSpan = 9;
  cell.append(make("pre", lines.join("\n")));
  row.append(cell);
  return row;
};

const table = (path, columns, items) => {
  const element = make("table");
  const head = element.createTHead().insertRow();
  for (const [name, show] of columns) {
    const number = items.some((item) => typeof (show ? show(item) : item[name]) === "number");
    head.append(make("th", name.replace("_", " "), number ? "number" : ""));
  }
  const body = element.createTBody();
  for (const item of items) {
    const row = body.insertRow();
    for (const [name, show, className] of columns) {
      const value = (show ? show(item) : item[name]) ?? "–";
      const cell = make("td", undefined, typeof value === "number" ? "number" : className);
      cell.append(value);
      row.append(cell);
    }
    if (path === "clones") {
      row.className = "clone";
      row.title = "How it is used";
      row.onclick = () => { opened.delete(item.id) || opened.add(item.id); draw(); };
      if (opened.has(item.id)) body.append(uses(item));
    }
  }
  const wide = make("div", undefined, "wide");
  wide.append(element);
  return wide;
};

// A gateway with tokens answers 401: one is asked for once, and kept as long as this page is open.
let token = null;
let asking = null;
const ask = async (path) => {
  const get = () => fetch("/v1/" + path, token ? { headers: { Authorization: "Bearer " + token } } : {});
  let response = await get();
  if (response.status === 401 && token !== "") {
    asking ??= Promise.resolve().then(() => { token = (prompt("Token for this gateway") ?? "").trim(); });
    await asking;
    asking = null;
    response = await get();
  }
  const text = await response.text();
  if (!response.ok) {
    let why = "the gateway answers " + response.status;
    try { why = JSON.parse(text).detail ?? why; } catch { /* not ours */ }
    throw new Error(why);
  }
  return JSON.parse(text);
};

let known = new Map();
let turns = 0;
const load = async () => {
  const paths = ["cache", ...lists.map(([, path]) => path)];
  // These look through all stores.
  if (turns++ % ALERTS_EVERY === 0) paths.push("alerts");
  const answers = await Promise.allSettled(paths.map((path) => {
    const limit = limits.get(path) ?? PAGE;
    return ask(["cache", "alerts"].includes(path) ? path : path + (path.includes("?") ? "&" : "?") + "limit=" + limit);
  }));
  paths.forEach((path, at) => known.set(path, answers[at]));
  const failed = answers.find((answer) => answer.status === "rejected");
  if (answers.every((answer) => answer.status === "rejected")) throw failed.reason;
};

const draw = () => {
  const filter = document.getElementById("filter").value.trim().toLowerCase();
  const parts = [];
  for (const [title, path, columns, hint] of lists) {
    const answer = known.get(path);
    if (!answer) continue;
    const heading = make("h2", title);
    parts.push(heading);
    if (answer.status === "rejected") {
      parts.push(make("p", String(answer.reason.message ?? answer.reason), "bad"));
      continue;
    }
    const page = answer.value;
    const items = page.items.filter((item) => !filter || JSON.stringify(item).toLowerCase().includes(filter));
    heading.append(" ", make("small", (filter ? items.length + " of " : "") + page.items.length + (page.next ? " and more" : "")));
    if (items.length > 0) parts.push(table(path, columns, items));
    else parts.push(make("p", page.items.length === 0 && hint ? "none yet: " + hint : "none", "empty"));
    if (page.next && (limits.get(path) ?? PAGE) < PAGE_MAX) {
      const more = make("button", "show more");
      more.onclick = () => { limits.set(path, Math.min(PAGE_MAX, 10 * (limits.get(path) ?? PAGE))); turn(); };
      parts.push(more);
    }
  }
  document.querySelector("main").replaceChildren(...parts);
  const alerts = known.get("alerts")?.value ?? [];
  document.getElementById("alerts").replaceChildren(...alerts.map((alert) => make(
    "p",
    alert.kind + " " + alert.name + " is " + alert.percent + " % full: " + size(alert.used_bytes) + " of " + size(alert.limit_bytes),
    alert.level === "critical" ? "bad" : "warn",
  )));
  const cache = known.get("cache")?.value;
  const reads = cache ? cache.hits + cache.joins + cache.misses : 0;
  document.getElementById("state").textContent = !cache ? "" :
    "iCache " + size(cache.used) + " of " + size(cache.capacity) + ", " + percent(cache.hits + cache.joins, reads) + " of reads found there, " +
    size(cache.store_bytes) + " read from stores, " + size(cache.spared_bytes) + " spared";
};

let timer = null;
const turn = async () => {
  clearTimeout(timer);
  // Nobody looks: nothing is asked.
  if (!document.hidden) {
    try {
      await load();
      draw();
      document.getElementById("state").className = "";
    } catch (error) {
      const line = document.getElementById("state");
      line.className = "bad";
      line.textContent = "No answer: " + String(error.message ?? error);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(turn, EVERY_MS);
};

document.getElementById("filter").oninput = draw;
document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
turn();
