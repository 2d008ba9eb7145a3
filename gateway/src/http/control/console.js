// Shows the first page of each list, every few seconds. Text goes in as text, never as markup.
"use strict";

const size = (bytes) => {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return (unit ? bytes.toFixed(1) : bytes) + " " + units[unit];
};

const lists = [
  ["Datastores", "datastores", [["name"], ["health"], ["free", size], ["capacity", size], ["bases"], ["clones"], ["url"]]],
  ["Templates", "templates", [["name"], ["published"], ["versions", (all) => all.length], ["description"]]],
  ["Bases", "bases", [["id"], ["template"], ["version"], ["datastore"], ["state"], ["taken"], ["slots"], ["size", size]]],
  ["Clones", "clones", [["name"], ["template"], ["version"], ["datastore"], ["size", size], ["delta_bytes", size], ["attached", (all) => all.join(", ")]]],
];

const cell = (kind, text) => {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
};

const table = (columns, items) => {
  const element = document.createElement("table");
  const head = element.createTHead().insertRow();
  for (const [name] of columns) head.append(cell("th", name.replace("_", " ")));
  const body = element.createTBody();
  for (const item of items) {
    const row = body.insertRow();
    for (const [name, show] of columns) {
      const value = show ? show(item[name]) : item[name];
      const data = cell("td", value ?? "–");
      if (typeof item[name] === "number") data.className = "number";
      row.append(data);
    }
  }
  return element;
};

// A gateway with tokens answers 401: one is asked for once, and kept as long as this page is open.
let token = null;
const ask = async (path) => {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const response = await fetch("/v1/" + path + "?limit=100", { headers });
  if (response.status !== 401) return response;
  if (token !== "") token = (prompt("Token for this gateway") ?? "").trim();
  return token ? fetch("/v1/" + path + "?limit=100", { headers: { Authorization: "Bearer " + token } }) : response;
};

const refresh = async () => {
  const parts = [];
  for (const [title, path, columns] of lists) {
    const response = await ask(path);
    if (!response.ok) throw new Error(title + ": " + ((await response.json()).detail ?? response.status));
    const page = await response.json();
    parts.push(cell("h2", title));
    if (page.items.length === 0) {
      const none = cell("p", "none");
      none.className = "empty";
      parts.push(none);
    } else {
      parts.push(table(columns, page.items));
    }
    if (page.next) parts.push(cell("p", "… and more"));
  }
  document.querySelector("main").replaceChildren(...parts);
};

const turn = async () => {
  const state = document.getElementById("state");
  try {
    await refresh();
    state.textContent = "";
  } catch (error) {
    state.textContent = String(error.message ?? error);
  }
  setTimeout(turn, 5000);
};

turn();
