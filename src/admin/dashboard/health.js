// How it is: figures and small charts of the process's own metrics.

import { get } from "./api.js";
import { lines, meter } from "./charts.js";
import { ago, badge, bytes, count, h, seconds, show, table } from "./dom.js";
import { every } from "./page.js";

export function open(main) {
  const figures = h("div", { class: "cards" });
  const secrets = h("section", { class: "card", "aria-labelledby": "secrets" });
  main.append(h("h1", {}, "Health"), figures, secrets);
  const refresh = every(5000, async () => {
    const [stats, config] = await Promise.all([get("/stats"), get("/config")]);
    show(figures, cards(stats), refusals(stats), certificates(stats), instance(stats, config));
    show(secrets, h("h2", { id: "secrets" }, "Secrets in use"), secretsTable(stats));
  });
  return refresh.stop;
}

const card = (title, figure, note, chart) =>
  h("section", { class: "card" }, h("h2", {}, title), h("p", { class: "figure" }, figure), h("p", { class: "soft small" }, note), chart);

function cards(stats) {
  const hour = stats.hour, step = hour.step_seconds;
  const rates = hour.requests.map((n) => n / step);
  const now = rates.at(-1) ?? 0;
  const since = seconds(Math.min(3600, stats.history_seconds));
  const all = Object.values(stats.requests).reduce((a, b) => a + b, 0);
  const pending = hour.pending.at(-1) ?? 0, dead = hour.dead.at(-1) ?? 0;
  const duplicates = stats.requests.duplicate ?? 0;
  return [
    card("Requests", `${now < 10 ? now.toFixed(1) : Math.round(now)} /s`, `${count(all)} at these endpoints since the start; the last ${since} below`,
      lines(`Requests a second over the last ${since}, at most ${Math.max(0, ...rates).toFixed(1)}`, rates)),
    card("Latency", seconds(stats.latency.p95_seconds), `95 % within; half within ${seconds(stats.latency.p50_seconds)}, 99 % within ${seconds(stats.latency.p99_seconds)}`,
      lines(`Time within which 95 % of requests were answered, over the last ${since}`, hour.p95_seconds)),
    card("Refused and failed", count((stats.requests.rejected ?? 0) + (stats.requests.failed ?? 0)), "refused below as the filled line, failed as the other",
      lines(`Refused and failed requests over the last ${since}`, hour.refused, hour.failed)),
    card("Duplicates", count(duplicates), "events that were delivered before, stopped",
      lines(`Duplicates over the last ${since}`, hour.duplicates)),
    card("Queue", count(pending), stats.queue ? `waiting; ${count(dead)} dead, ${bytes(stats.queue.bytes)} on disk` : "there is none: no data_dir",
      lines(`Waiting and dead events over the last ${since}`, hour.pending, hour.dead)),
  ];
}

function refusals(stats) {
  const all = Object.entries(stats.refusals).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...all.map(([, n]) => n));
  return h("section", { class: "card" }, h("h2", {}, "Refusals by reason"),
    all.length === 0
      ? h("p", { class: "soft" }, "None since the start.")
      : h("div", { class: "meter" }, all.map(([reason, n]) => [h("span", {}, reason), meter(n / most), h("span", { class: "number" }, count(n))])));
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function instance(stats, config) {
  const reload = stats.reload;
  return h("section", { class: "card" }, h("h2", {}, "Instance"),
    h("dl", { class: "facts" },
      fact("Version", stats.version),
      fact("Running", seconds(stats.uptime_seconds)),
      fact("Memory", bytes(stats.resident_bytes)),
      fact("Connections", count(stats.connections)),
      fact("Keys known", count(stats.dedup_entries)),
      fact("Configuration", reload.succeeded ? badge("in force", "good") : badge("last reload refused", "failed")),
      fact("Since", ago(reload.last_success_at)),
      fact("Reloads", `${count(reload.reloads)}, ${count(reload.failures)} refused`),
      fact("File", config.file ?? "none"),
      fact("Disk", stats.queue?.trouble ? badge(stats.queue.trouble, "failed") : badge(stats.queue ? "writable" : "not used", stats.queue ? "good" : ""))),
    config.warnings.map((warning) => h("p", { class: "outcome refused small" }, warning)));
}

function certificates(stats) {
  return h("section", { class: "card" }, h("h2", {}, "Certificates"),
    stats.certificates.length === 0
      ? h("p", { class: "soft" }, "None of its own: TLS ends in front of it.")
      : h("dl", { class: "facts" }, stats.certificates.map((one) => fact(one.domain, ago(one.expires_at)))));
}

function secretsTable(stats) {
  if (stats.secrets.length === 0) return h("p", { class: "empty" }, "There is no endpoint yet.");
  return table("Which secrets match", [{ name: "Endpoint" }, { name: "Secret" }, { name: "Matches", class: "number" }, { name: "Ends" }, { name: "State" }],
    stats.secrets.map((one) => [one.endpoint, one.name, count(one.matches), one.not_after ? ago(one.not_after) : "never",
      one.good ? badge(one.matches > 0 ? "in use" : "not used yet", one.matches > 0 ? "good" : "") : badge("over", "failed")]));
}
