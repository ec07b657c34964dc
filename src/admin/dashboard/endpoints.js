// Endpoints: what there is, switched, tried, made, edited, removed.

import { all, ask } from "./api.js";
import { day } from "./charts.js";
import { ago, badge, bolt, confirm, count, dialog, h, kind, notice, seconds, show } from "./dom.js";
import { every } from "./page.js";

export const EVENTS = ["contact.created", "message.created", "contact.lead.updated", "conversation.created", "takeover.request"];
const SCHEMES = ["tinytalk", "github", "stripe", "standard-webhooks"];

export function open(main) {
  const list = h("ul", { class: "list", "aria-label": "Endpoints" });
  const outcomes = new Map();
  main.append(
    h("div", { class: "bar" },
      h("h1", {}, "Endpoints"),
      h("button", { type: "button", id: "export", click: written }, "As TOML"),
      h("button", { type: "button", id: "create", class: "main", click: () => edit(null, refresh) }, "New endpoint")),
    list);
  const refresh = every(10000, async () => {
    const items = await all("/endpoints");
    show(list, items.length === 0
      ? h("li", { class: "card empty" }, "There is no endpoint yet. Make one, and point a sender's webhook at it.")
      : items.map((item) => card(item, outcomes, refresh)));
  });
  return refresh.stop;
}

function card(item, outcomes, refresh) {
  const own = item.origin === "run_time";
  const figures = item.day ?? { good: [], refused: [], failed: [] };
  const total = (name) => figures[name].reduce((a, b) => a + b, 0);
  return h("li", { class: `card endpoint ${item.active ? "" : "off"}` },
    h("div", { class: "bar" },
      h("div", { class: "grow" },
        h("h2", { class: "name" }, item.name),
        item.description && h("p", { class: "soft small" }, item.description)),
      badge(own ? "made here" : "configuration file"),
      badge(item.mode === "queue" ? "queue" : "relay"),
      h("button", {
        type: "button", role: "switch", class: "switch", id: `switch-${item.name}`,
        "aria-checked": String(item.active), "aria-label": `${item.name} is active`,
        click: () => change(() => ask("PUT", `/endpoints/${item.name}/active`, { active: !item.active }), refresh),
      }, item.active ? "On" : "Off")),
    h("p", { class: "where" }, h("code", {}, item.path), h("span", { class: "soft", "aria-hidden": "true" }, "→"), h("span", { class: "unseen" }, "goes to"), h("code", {}, item.upstream)),
    h("div", { class: "split" },
      h("dl", { class: "facts" },
        fact("Source", item.source || "–"),
        fact("Events", item.events.includes("*") ? "all" : item.events.join(", ")),
        fact("Created", item.created_at ? ago(item.created_at) : "in the file"),
        fact("Last event", ago(item.last_event_at)),
        fact("Secrets", item.secrets.map((secret) => secret.name).join(", ")),
        (item.pending > 0 || item.dead > 0) && fact("Queue", `${count(item.pending)} waiting, ${count(item.dead)} dead`)),
      h("div", {},
        day(figures),
        h("p", { class: "soft small" }, `24 h: ${count(total("good"))} good, ${count(total("refused"))} refused, ${count(total("failed"))} failed`))),
    tests(item, outcomes, refresh),
    own && h("div", { class: "bar" },
      h("span", { class: "grow" }),
      h("button", { type: "button", class: "small", id: `edit-${item.name}`, click: () => edit(item, refresh) }, "Edit"),
      h("button", { type: "button", class: "small danger", id: `remove-${item.name}`, click: () => remove(item, refresh) }, "Remove")));
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

// A lightning button per event type, and what came of the last one pressed.
function tests(item, outcomes, refresh) {
  const said = h("div", { role: "status", id: `outcome-${item.name}` }, outcomes.get(item.name)?.());
  const press = async (event, button) => {
    button.disabled = true;
    try {
      const result = await ask("POST", `/endpoints/${item.name}/test`, { event });
      outcomes.set(item.name, () => outcome(event, result));
      refresh();
    } catch (problem) {
      outcomes.set(item.name, () => h("p", { class: "outcome failed" }, problem.message));
    }
    show(said, outcomes.get(item.name)());
    button.disabled = false;
    button.focus();
  };
  return h("div", { class: "trial" },
    h("div", { class: "tests", role: "group", "aria-label": `Send ${item.name} a signed sample` },
      EVENTS.map((event) => h("button", {
        type: "button", class: "small bolt", id: `test-${item.name}-${event}`, title: `Send a signed ${event}`,
        click: (pressed) => press(event, pressed.currentTarget),
      }, bolt(), event))),
    said);
}

function outcome(event, result) {
  const reason = result.reason ? ` (${result.reason})` : "";
  return h("p", { class: `outcome small ${kind(result.outcome, result.status)}` },
    h("strong", {}, `${event}: ${result.status} ${result.outcome ?? "refused"}${reason}`),
    ` in ${seconds(result.duration_seconds)}. `,
    result.answer && h("code", {}, result.answer.slice(0, 200)));
}

async function change(act, refresh) {
  try { await act(); } catch (problem) { notice(problem.message); }
  refresh();
}

async function remove(item, refresh) {
  const text = [`Senders that post to ${item.path} will be answered 404.`];
  if (item.pending > 0) text.push(`${count(item.pending)} events still wait on disk; they stay there, undelivered, until they are dropped or an endpoint of this name takes them over.`);
  if (item.source && !/^(dashboard|manual|by hand)$/i.test(item.source)) {
    text.push(`Its webhook was made by ${item.source}: removing the endpoint may break that integration without a word there.`);
  }
  if (await confirm(`Remove ${item.name}?`, text, "Remove")) {
    await change(() => ask("DELETE", `/endpoints/${item.name}`), refresh);
  }
}

async function written() {
  try {
    dialog("For the configuration", h("pre", { tabindex: "0" }, await ask("GET", "/export")));
  } catch (problem) { notice(problem.message); }
}

const field = (label, name, attributes, hint) =>
  h("label", {}, label, hint && h("span", { class: "hint" }, hint), h("input", { name, id: `field-${name}`, autocomplete: "off", spellcheck: "false", ...attributes }));
const choice = (label, name, options, value) =>
  h("label", {}, label, h("select", { name, id: `field-${name}` }, options.map((o) => h("option", { value: o, selected: o === value }, o))));

function edit(item, refresh) {
  const table = item?.given ?? {};
  const wanted = table.events ?? ["*"];
  const others = wanted.filter((event) => event !== "*" && !EVENTS.includes(event));
  const scheme = typeof table.scheme === "object" ? "as it is" : table.scheme ?? "tinytalk";
  const wrong = h("div", { role: "alert" });
  const form = h("form", { submit: (event) => { event.preventDefault(); save(); } },
    h("div", { class: "pair" },
      !item && field("Name", "name", { required: true, pattern: "[a-z][a-z0-9_]{0,62}" }, "lower-case letters, digits, _"),
      field("Path", "path", { required: true, value: table.path ?? "/webhooks/", placeholder: "/webhooks/tinytalk" }, "where the sender posts to")),
    field("Upstream", "upstream", { required: true, value: table.upstream ?? "", placeholder: "http://10.0.0.7:3000/hooks" }, "the application behind"),
    h("div", { class: "pair" },
      choice("Mode", "mode", ["relay", "queue"], table.mode ?? "relay"),
      choice("Scheme", "scheme", scheme === "as it is" ? ["as it is", ...SCHEMES] : SCHEMES, scheme)),
    h("fieldset", { class: "choice" }, h("legend", {}, "Events"),
      h("label", {}, h("input", { type: "checkbox", name: "all", checked: wanted.includes("*"), change: () => mark() }), "all"),
      EVENTS.map((event) => h("label", {}, h("input", { type: "checkbox", name: "event", value: event, checked: wanted.includes(event) || wanted.includes("*") }), event))),
    h("div", { class: "pair" },
      field("Description", "description", { value: table.description ?? "" }),
      field("Source", "source", { value: table.source ?? "dashboard", list: "sources" }, "what made the webhook at the sender")),
    h("datalist", { id: "sources" }, ["dashboard", "Zapier", "Pabbly Connect", "Make", "n8n"].map((name) => h("option", { value: name }))),
    h("fieldset", { class: "choice" }, h("legend", {}, "Secret"),
      item && radio("keep", "keep what there is", true),
      radio("generate", item ? "make a new one, beside those there are" : "make one", !item),
      radio("paste", item ? "the one the sender shows, beside those there are" : "the one the sender shows", false),
      h("label", {}, h("span", { class: "unseen" }, "The sender's secret"),
        h("input", { type: "password", name: "pasted", id: "field-pasted", autocomplete: "off", placeholder: "paste it here", input: () => { form.elements.secret.value = "paste"; } })),
      (table.secrets ?? []).map((secret) => h("label", {}, h("input", { type: "checkbox", name: "drop", value: secret.name }), `take away ${secret.name}`))),
    wrong,
    h("div", { class: "bar" }, h("span", { class: "grow" }), h("button", { class: "main" }, item ? "Save" : "Create")));
  function radio(value, text, checked) {
    return h("label", {}, h("input", { type: "radio", name: "secret", value, checked }), text);
  }
  function mark() {
    const every = form.elements.all.checked;
    for (const box of form.elements.event) { box.disabled = every; if (every) box.checked = true; }
  }
  mark();
  const box = dialog(item ? `Edit ${item.name}` : "New endpoint", form);

  async function make(body) {
    try { return await ask("POST", "/endpoints", body); } catch (problem) {
      if (problem.reason !== "events_waiting") throw problem;
      const text = ["Events of an earlier endpoint of this name wait on disk. They would be delivered to this one's upstream."];
      if (await confirm(`Deliver them to the new ${body.name}?`, text, "Take them over")) return ask("POST", "/endpoints", { ...body, takes_over: true });
      throw problem;
    }
  }
  async function save() {
    const of = (name) => form.elements[name].value.trim();
    const settings = { ...table, path: of("path"), upstream: of("upstream"), mode: of("mode"), description: of("description"), source: of("source") };
    const some = [...form.elements.event].filter((box) => box.checked).map((box) => box.value);
    settings.events = form.elements.all.checked ? ["*"] : [...some, ...others];
    if (of("scheme") !== "as it is") settings.scheme = of("scheme");
    const dropped = [...form.querySelectorAll("[name=drop]:checked")].map((box) => box.value);
    const all = table.secrets ?? [];
    const before = all.filter((secret) => !dropped.includes(secret.name));
    const fresh = nameOfSecret(all);
    if (dropped.length > 0) settings.secrets = before;
    if (of("secret") === "generate") settings.secrets = [...before, { name: fresh, generate: true }];
    if (of("secret") === "paste") settings.secrets = [...before, { name: fresh, value: form.elements.pasted.value }];
    try {
      const made = item
        ? await ask("PUT", `/endpoints/${item.name}`, { settings }, { "If-Match": `"${item.revision}"` })
        : await make({ name: of("name"), settings });
      box.close();
      refresh();
      if (made.generated_secrets.length > 0) secrets(made);
      else notice(`${made.endpoint.name} is in force.`);
    } catch (problem) {
      show(wrong, h("p", { class: "wrong" }, problem.message),
        problem.errors.map((error) => h("p", { class: "wrong" }, `${error.key || "endpoint"}: ${error.detail}`)));
    }
  }
}

// A month, as people name secrets; with a number where there is one of it already.
function nameOfSecret(before) {
  const month = new Date().toISOString().slice(0, 7);
  const names = before.map((secret) => secret.name);
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? month : `${month}-${number}`;
    if (!names.includes(name)) return name;
  }
}

function secrets(made) {
  dialog(`The secret of ${made.endpoint.name}`,
    h("p", {}, "Give it to the sender. It is shown this once, and kept where nobody can read it back."),
    made.generated_secrets.map((secret) => {
      const value = h("code", { tabindex: "0", "aria-label": `Secret ${secret.name}` }, secret.value);
      const copy = async () => {
        try { await navigator.clipboard.writeText(secret.value); notice("Copied."); }
        catch { getSelection().selectAllChildren(value); notice("Selected: copy it from there."); }
      };
      return h("div", { class: "secret" }, value, h("button", { type: "button", click: copy }, "Copy"));
    }));
}
