// Elements, built from text alone: nothing a sender wrote is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(9)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const bolt = () =>
  s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: "M9.5 0 2 9.2h4.6L5.8 16 14 6.2H9z" }));

// Replaces what is in an element, the focus kept where it was if that is still there.
export function show(element, ...children) {
  const id = document.activeElement?.id;
  element.replaceChildren(...children.flat(9).filter((c) => c instanceof Node));
  if (id && element !== document.activeElement) element.querySelector(`#${CSS.escape(id)}`)?.focus();
}

// Says something for a while. While a dialog is open all else is out of reach: then it is said there.
export function notice(text) {
  const line = h("p", { class: "notice" }, text);
  place();
  document.getElementById("notices").append(line);
  setTimeout(() => line.remove(), 7000);
}

function place() {
  const notices = document.getElementById("notices");
  const over = [...document.querySelectorAll("dialog[open]")].pop() ?? document.body;
  if (notices.parentNode !== over) over.append(notices);
}

let dialogs = 0;

// A dialog that goes away when it is closed, and gives the focus back.
export function dialog(title, ...children) {
  const before = document.activeElement;
  const close = () => box.close();
  const name = `dialog-${dialogs += 1}`;
  const box = h("dialog", { "aria-labelledby": name, close: () => { place(); box.remove(); before?.focus?.(); } },
    h("div", { class: "content" },
      h("div", { class: "bar" },
        h("h2", { id: name }, title),
        h("button", { type: "button", class: "quiet small", click: close }, "Close")),
      ...children));
  document.body.append(box);
  box.showModal();
  place();
  return box;
}

// Asks; true when the named button was pressed.
export const confirm = (title, text, button) => new Promise((answer) => {
  let said = false;
  const box = dialog(title,
    text.map((line) => h("p", {}, line)),
    h("div", { class: "bar" },
      h("span", { class: "grow" }),
      h("button", { type: "button", click: () => box.close() }, "Cancel"),
      h("button", { type: "button", class: "danger", click: () => { said = true; box.close(); } }, button)));
  box.addEventListener("close", () => answer(said));
});

const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "short" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

export function ago(text) {
  if (!text) return h("span", { class: "soft" }, "–");
  const at = new Date(text);
  const seconds = Math.round((at - Date.now()) / 1000);
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS[3];
  return h("time", { datetime: text, title: at.toLocaleString() }, relative.format(Math.trunc(seconds / size), unit));
}

export const clock = (text) =>
  h("time", { datetime: text, title: new Date(text).toLocaleString() }, new Date(text).toLocaleTimeString());

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Number((value * 1000).toPrecision(2))} ms`;
  if (value < 120) return `${Number(value.toPrecision(2))} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export const count = (value) => new Intl.NumberFormat("en").format(value ?? 0);

const KINDS = { rejected: "refused", failed: "failed", forwarded: "good", queued: "good", unverified: "refused" };

// The colour of an outcome; a refusal before there was an endpoint has none.
export function kind(outcome, status) {
  if (outcome === "forwarded" && status >= 400) return "failed";
  return KINDS[outcome] ?? (outcome ? "" : "refused");
}

export const badge = (text, of) => h("span", { class: `badge ${of ?? ""}` }, text);

// A body as it is read best: JSON with its lines, or else as it came.
export function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

// A table whose rows are lists of what its columns hold.
export function table(label, columns, rows, attributes) {
  const cell = (value, index) => {
    const column = columns[index];
    return h("td", { class: column.class, "data-label": column.name || undefined }, value);
  };
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", { class: "stack", ...attributes },
      h("thead", {}, h("tr", {}, columns.map((column) =>
        h("th", { scope: "col", class: column.class }, column.head ?? (column.name || h("span", { class: "unseen" }, "Actions")))))),
      h("tbody", {}, rows.map((row) => row instanceof Node ? row : h("tr", {}, row.map(cell))))));
}
