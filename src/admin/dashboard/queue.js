// What is on disk: waiting, dead, in quarantine.

import { ask, get } from "./api.js";
import { ago, badge, bytes, confirm, count, dialog, h, notice, seconds, show, table } from "./dom.js";
import { body, explanation, headers } from "./live.js";
import { every } from "./page.js";

export function open(main) {
  const stored = h("div", { class: "card" });
  const events = h("div", {});
  const suspects = h("div", {});
  const chosen = new Set();
  let endpoints = [], more = 100;
  const endpoint = h("select", { id: "q-endpoint", change: reset }, h("option", { value: "" }, "all"));
  const state = h("select", { id: "q-state", change: reset },
    ["dead", "pending", "leased", "delivered"].map((name) => h("option", { value: name }, name)));
  const error = h("input", { id: "q-error", type: "search", placeholder: "part of the last error", change: reset });
  const act = h("div", { class: "bar" });
  main.append(
    h("h1", {}, "Queue"),
    stored,
    h("section", { class: "card", "aria-labelledby": "q-events" },
      h("h2", { id: "q-events" }, "Events"),
      h("div", { class: "filters" }, h("label", {}, "State", state), h("label", {}, "Endpoint", endpoint), h("label", {}, "Error", error)),
      act, events),
    suspects);

  function reset() { chosen.clear(); more = 100; refresh(); }
  function filter() {
    const filter = { state: state.value };
    if (endpoint.value) filter.endpoint = endpoint.value;
    if (error.value.trim()) filter.error = error.value.trim();
    return filter;
  }
  const refresh = every(5000, async () => {
    try { endpoints = (await get("/queue/endpoints")).items; }
    catch (problem) {
      if (problem.status !== 409) throw problem;
      show(stored, h("p", { class: "empty" }, problem.message));
      return;
    }
    const names = endpoints.map((one) => one.endpoint);
    if (names.join() !== [...endpoint.options].slice(1).map((o) => o.value).join()) {
      const before = endpoint.value;
      show(endpoint, h("option", { value: "" }, "all"), names.map((name) => h("option", { value: name, selected: name === before }, name)));
    }
    show(stored, h("h2", {}, "On disk"), totals(endpoints, refresh));
    await list();
    quarantines();
  });

  async function list() {
    const items = [];
    let next = null;
    do {
      const query = new URLSearchParams({ ...filter(), limit: String(Math.min(500, more - items.length)) });
      if (next) query.set("cursor", next);
      const part = await get(`/queue/events?${query}`);
      items.push(...part.items);
      next = part.next;
    } while (next && items.length < more);
    const there = new Set(items.map((item) => item.event_id));
    for (const id of chosen) if (!there.has(id)) chosen.delete(id);
    const isEvery = items.length > 0 && items.every((item) => chosen.has(item.event_id));
    const every = h("input", {
      type: "checkbox", id: "q-every", "aria-label": "Choose all that are shown", checked: isEvery,
      change: (event) => { for (const item of items) event.target.checked ? chosen.add(item.event_id) : chosen.delete(item.event_id); draw(items, next); },
    });
    draw(items, next, every);
  }

  function draw(items, next, every) {
    every ??= document.getElementById("q-every");
    if (items.length === 0) {
      show(events, h("p", { class: "empty" }, state.value === "dead" ? "No dead letters." : `No event is ${state.value}.`));
      actions(items);
      return;
    }
    const columns = [
      { name: "", head: every }, { name: "Event", class: "wide" }, { name: "Endpoint" }, { name: "Came" },
      { name: "Attempts", class: "number" }, { name: "Last answer", class: "wide" }, { name: "Next" }];
    const rows = items.map((item) => [
      h("input", {
        type: "checkbox", id: `q-${item.event_id}`, "aria-label": `Choose ${item.event_id}`, checked: chosen.has(item.event_id),
        change: (event) => { event.target.checked ? chosen.add(item.event_id) : chosen.delete(item.event_id); actions(items); },
      }),
      [h("button", { type: "button", class: "link", id: `open-${item.event_id}`, click: () => detail(item, refresh) }, item.event_type ?? "no type"),
        h("div", { class: "soft small mono" }, item.event_id)],
      item.endpoint, ago(item.appended_at), count(item.attempts),
      item.last_error ?? (item.last_status ? `answered ${item.last_status}` : "–"),
      item.state === "pending" ? (item.waits_for_lane ? "after an earlier one" : ago(item.due_at)) : badge(item.state, item.state === "dead" ? "failed" : "")]);
    show(events, table("Events on disk", columns, rows),
      next && h("button", { type: "button", id: "q-more", click: () => { more += 200; refresh(); } }, "More"));
    actions(items);
  }

  function actions(items) {
    const some = [...chosen];
    const button = (id, text, path, which, danger) => h("button", {
      type: "button", id, class: danger ? "small danger" : "small",
      click: () => order(path, which, text),
    }, text);
    show(act,
      h("p", { class: "grow soft small", role: "status" }, some.length > 0 ? `${count(some.length)} chosen` : `${count(items.length)} shown`),
      some.length > 0 && button("q-replay", "Replay chosen", "/queue/replay", { ids: some }),
      some.length > 0 && button("q-drop", "Drop chosen", "/queue/drop", { ids: some }, true),
      items.length > 0 && some.length === 0 && button("q-replay-all", "Replay all that match", "/queue/replay", { filter: filter() }),
      items.length > 0 && some.length === 0 && button("q-drop-all", "Drop all that match", "/queue/drop", { filter: filter() }, true));
  }

  async function order(path, which, text) {
    const drops = path.endsWith("drop");
    if (drops && !await confirm(`${text}?`, ["They are gone for good, and their keys are free: a sender's retry is a new event."], "Drop")) return;
    try {
      const said = await ask("POST", path, which);
      notice(drops ? `${count(said.dropped)} dropped.` : `${count(said.replayed)} will be delivered again.`);
      chosen.clear();
    } catch (problem) { notice(problem.message); }
    refresh();
  }

  function quarantines() {
    const some = endpoints.filter((one) => one.quarantined > 0);
    show(suspects, some.length > 0 && h("section", { class: "card", "aria-labelledby": "q-suspects" },
      h("h2", { id: "q-suspects" }, "Quarantine"),
      h("p", { class: "soft small" }, "Requests whose signature did not match. Mend the secret, then let through what matches it."),
      table("Requests in quarantine", [{ name: "Endpoint" }, { name: "Requests", class: "number" }, { name: "Size", class: "number" }, { name: "" }],
        some.map((one) => [one.endpoint, count(one.quarantined), bytes(one.quarantined_bytes), h("div", { class: "tests" },
          h("button", { type: "button", class: "small", id: `look-${one.endpoint}`, click: () => suspectsOf(one.endpoint) }, "Look"),
          h("button", { type: "button", class: "small", id: `reverify-${one.endpoint}`, click: () => reverify(one.endpoint, refresh) }, "Verify again"))]))));
  }
  return refresh.stop;
}

function totals(endpoints, refresh) {
  if (endpoints.length === 0) return h("p", { class: "empty" }, "Nothing has been put on disk yet.");
  const columns = [
    { name: "Endpoint" }, { name: "Waiting", class: "number" }, { name: "Under way", class: "number" }, { name: "Dead", class: "number" },
    { name: "Delivered", class: "number" }, { name: "Oldest", class: "number" }, { name: "Size", class: "number" }, { name: "" }];
  return table("What each endpoint holds", columns, endpoints.map((one) => [
    one.endpoint, count(one.pending), count(one.leased),
    one.dead > 0 ? badge(count(one.dead), "failed") : "0", count(one.delivered),
    one.oldest_age_seconds === null ? "–" : seconds(one.oldest_age_seconds), bytes(one.stored_bytes),
    h("button", {
      type: "button", class: "small", id: `hold-${one.endpoint}`,
      click: async () => {
        try { await ask("PUT", `/queue/endpoints/${one.endpoint}/paused`, { paused: !one.paused }); }
        catch (problem) { notice(problem.message); }
        refresh();
      },
    }, one.paused ? "Go on" : "Hold", h("span", { class: "unseen" }, ` ${one.endpoint}`))]));
}

async function detail(item, refresh) {
  let full;
  try { full = await get(`/queue/events/${item.event_id}`); }
  catch (problem) { notice(problem.message); return; }
  const go = async (path, which) => {
    try { await ask("POST", path, which); box.close(); } catch (problem) { notice(problem.message); }
    refresh();
  };
  const ids = { ids: [full.event_id] };
  const request = full.request ?? {};
  const box = dialog(full.event_type ?? "Event",
    h("p", { class: "bar" }, badge(full.state, full.state === "dead" ? "failed" : ""), h("span", { class: "mono small" }, full.event_id)),
    h("div", { class: "bar" },
      h("button", { type: "button", class: "small main", id: "replay-one", click: () => go("/queue/replay", ids) }, "Replay"),
      h("button", { type: "button", class: "small danger", click: () => go("/queue/drop", ids) }, "Drop")),
    h("h3", {}, "Attempts that failed"),
    full.failed_attempts.length === 0
      ? h("p", { class: "soft" }, "None.")
      : table("Failed attempts", [{ name: "Attempt", class: "number" }, { name: "At" }, { name: "Answer" }],
        full.failed_attempts.map((one) => [one.attempt, new Date(one.at).toLocaleString(), one.error])),
    request.fault && h("p", { class: "wrong" }, request.fault),
    headers(request.headers),
    body(request));
}

async function suspectsOf(endpoint) {
  let part;
  try { part = await get(`/quarantine/${endpoint}`); } catch (problem) { notice(problem.message); return; }
  const shown = h("div", { class: "content" });
  const look = async (number) => {
    try {
      const one = await get(`/quarantine/${endpoint}/${number}`);
      show(shown, explanation(one.explanation), headers(one.request.headers), body(one.request));
    } catch (problem) { notice(problem.message); }
  };
  dialog(`Quarantine of ${endpoint}`,
    table("Quarantined requests", [{ name: "Came" }, { name: "Reason" }, { name: "Size", class: "number" }, { name: "" }],
      part.items.map((one) => [new Date(one.at).toLocaleString(), one.reason, bytes(one.bytes),
        h("button", { type: "button", class: "small", click: () => look(one.number) }, "Why?")])),
    shown);
}

async function reverify(endpoint, refresh) {
  try {
    const said = await ask("POST", `/quarantine/${endpoint}/reverify`);
    notice(`${count(said.released)} let through, ${count(said.unmatched)} still do not match.`);
  } catch (problem) { notice(problem.message); }
  refresh();
}
