// Requests as they come; one of them opened.

import { all, get } from "./api.js";
import { badge, bytes, clock, count, dialog, h, kind, notice, pretty, seconds, show } from "./dom.js";

const MOST = 300;
const COLUMNS = ["Time", "Endpoint", "Outcome", "Event", "Status", "Duration"];

export function open(main) {
  let rows = [], paused = false, held = 0, missed = 0, capture = null, closed = false;
  const endpoint = h("select", { id: "of-endpoint", change: draw }, h("option", { value: "" }, "all"));
  const outcome = h("select", { id: "of-outcome", change: draw },
    h("option", { value: "" }, "all"),
    ["forwarded", "queued", "duplicate", "filtered", "rejected", "failed", "unverified"].map((o) => h("option", { value: o }, o)));
  const state = h("p", { class: "soft small", role: "status" }, "connecting …");
  const hold = h("button", { type: "button", id: "pause", "aria-pressed": "false", click: toggle }, "Pause");
  const body = h("tbody", {});
  const empty = h("p", { class: "empty" }, "Nothing has come since you began to watch.");
  main.append(
    h("div", { class: "bar" }, h("h1", {}, "Live"), hold),
    state,
    h("div", { class: "filters" }, h("label", {}, "Endpoint", endpoint), h("label", {}, "Outcome", outcome)),
    h("div", { class: "card" }, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Requests" },
      h("table", { class: "stack" },
        h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col", class: name === "Status" || name === "Duration" ? "number" : null }, name)))),
        body)), empty));

  all("/endpoints").then((items) => endpoint.append(...items.map((item) => h("option", { value: item.name }, item.name)))).catch(() => {});
  get("/requests?limit=100").then((part) => {
    const known = new Set(rows.map((row) => row.number));
    rows.push(...part.items.filter((item) => !known.has(item.number)));
    draw();
  }).catch((problem) => notice(problem.message));
  const stream = new EventSource("/api/v1/requests/stream");
  stream.addEventListener("hello", (event) => {
    capture = JSON.parse(event.data).capture;
    say();
  });
  stream.addEventListener("missed", (event) => { missed += JSON.parse(event.data).count; say(); });
  stream.addEventListener("request", (event) => {
    const item = JSON.parse(event.data);
    if (paused) { held += 1; say(); }
    rows.unshift(item);
    if (rows.length > MOST) rows.length = MOST;
    if (!paused) add(item);
  });
  stream.onerror = () => {
    if (closed) return;
    const isOver = stream.readyState === EventSource.CLOSED;
    state.textContent = isOver ? "Nothing more comes: too many watch, or hookward is not there. Open this page again." : "The connection broke off; trying again.";
    // A refused stream does not say why: the API does.
    if (isOver) get("/session").catch((problem) => notice(problem.message));
  };

  function say() {
    if (!capture) return;
    const kept = capture.events > 0
      ? `Capturing is on: headers and bodies of the last ${capture.events} requests are kept in memory, up to ${bytes(capture.bytes)}.`
      : "Capturing is off: outcomes are shown while you watch, without headers and bodies (admin.capture).";
    const lost = missed > 0 ? ` ${count(missed)} came too fast to be shown.` : "";
    state.textContent = (paused ? `Paused; ${held} came meanwhile. ${kept}` : kept) + lost;
  }
  function toggle() {
    paused = !paused;
    hold.setAttribute("aria-pressed", String(paused));
    hold.textContent = paused ? "Go on" : "Pause";
    if (!paused) { held = 0; draw(); }
    say();
  }
  const wanted = (item) =>
    (!endpoint.value || item.endpoint === endpoint.value) && (!outcome.value || item.outcome === outcome.value);
  function add(item) {
    if (!wanted(item)) return;
    const line = row(item);
    line.classList.add("new");
    body.prepend(line);
    while (body.children.length > MOST) body.lastElementChild.remove();
    empty.hidden = true;
  }
  function draw() {
    const shown = rows.filter(wanted);
    show(body, shown.map(row));
    empty.hidden = shown.length > 0;
  }
  return () => { closed = true; stream.close(); };
}

function row(item) {
  const what = item.outcome ?? "refused";
  const reason = item.reason ? h("span", { class: "soft small" }, ` ${item.reason}`) : null;
  const name = item.endpoint ?? (item.target || "no request");
  const open = item.event_id
    ? h("button", { type: "button", class: "link", click: () => detail(item) }, name)
    : name;
  return h("tr", { "data-id": item.event_id || null },
    h("td", { class: "nowrap", "data-label": "Time" }, clock(item.at)),
    h("td", { class: "wide", "data-label": "Endpoint" }, open),
    h("td", { class: "wide", "data-label": "Outcome" }, badge(what, kind(item.outcome, item.status)), reason),
    h("td", { "data-label": "Event" }, item.event === "none" ? h("span", { class: "soft" }, "–") : item.event),
    h("td", { class: "number", "data-label": "Status" }, item.status),
    h("td", { class: "number", "data-label": "Duration" }, seconds(item.duration_seconds)));
}

export function explanation(found) {
  if (!found?.length) return null;
  return h("div", { class: "explained" }, h("h3", {}, "Why the signature does not match"),
    found.map((one) => [
      h("p", { class: "small" }, `With the secret ${one.secret}:`, one.matches && " it matches now; the secret was another one when this came."),
      h("ul", {}, one.findings.map((line) => h("li", {}, line)))]));
}

export const headers = (pairs) => pairs?.length > 0 && [
  h("h3", {}, "Headers"),
  h("pre", { tabindex: "0", class: "headers" }, pairs.map(([name, value]) => `${name}: ${value}`).join("\n"))];

export function body(of) {
  if (of.body_base64 !== undefined) return [h("h3", {}, "Body, in base64"), h("pre", { tabindex: "0" }, of.body_base64)];
  if (of.body === undefined) return null;
  return [h("h3", {}, "Body"), h("pre", { tabindex: "0", class: "body" }, of.body === "" ? "(empty)" : pretty(of.body))];
}

async function detail(item) {
  let full;
  try { full = await get(`/requests/${encodeURIComponent(item.event_id)}`); }
  catch (problem) { notice(problem.message); return; }
  dialog(full.endpoint ?? "No endpoint",
    h("p", { class: "bar" }, badge(full.outcome ?? "refused", kind(full.outcome, full.status)),
      full.reason && badge(full.reason), h("span", {}, `${full.status}`), h("span", { class: "soft" }, seconds(full.duration_seconds))),
    full.why && h("p", {}, full.why),
    explanation(full.explanation),
    h("dl", { class: "facts" },
      [["Request", `${full.method} ${full.target}`], ["Came", new Date(full.at).toLocaleString()], ["From", full.peer ?? "this process"],
        ["Event", full.event], ["Event id", full.event_id]].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    headers(full.headers),
    body(full),
    !full.captured && h("p", { class: "soft" }, "Headers and body were not kept: capturing is off (admin.capture)."));
}
