// The operator's API, with the session's cookie.

export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail ?? `The answer was ${status}.`);
    this.status = status;
    // A word, such as events_waiting.
    this.reason = document?.type?.split(":").pop();
    this.errors = document?.errors ?? [];
  }
}

let whenSignedOut = () => {};
export const onSignedOut = (act) => { whenSignedOut = act; };

export async function ask(method, path, body, headers) {
  const request = { method, credentials: "same-origin", headers: { ...headers } };
  if (body !== undefined) {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try { answer = await fetch(`/api/v1${path}`, request); }
  catch { throw new Problem(0, { detail: "hookward does not answer. Is it running?" }); }
  const text = await answer.text();
  let document = null;
  try { document = text ? JSON.parse(text) : null; } catch { document = text; }
  if (answer.ok) return document;
  if (answer.status === 401 && path !== "/session") whenSignedOut();
  throw new Problem(answer.status, document);
}

export const get = (path) => ask("GET", path);

// Every part of a listing, up to a bound that a page can show.
export async function all(path, most = 1000) {
  const items = [];
  const sign = path.includes("?") ? "&" : "?";
  for (let cursor = ""; ;) {
    const part = await get(`${path}${sign}limit=500${cursor}`);
    items.push(...part.items);
    if (!part.next || items.length >= most) return items;
    cursor = `&cursor=${encodeURIComponent(part.next)}`;
  }
}
