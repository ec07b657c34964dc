// Which page is shown, and to whom.

import { ask, get, onSignedOut } from "./api.js";
import { h, notice, show } from "./dom.js";
import * as endpoints from "./endpoints.js";
import * as health from "./health.js";
import * as live from "./live.js";
import * as queue from "./queue.js";

const PAGES = { endpoints, live, queue, health };
const main = document.getElementById("main");
const pages = document.getElementById("pages");
const out = document.getElementById("sign-out");

let leave = null;

function page() {
  const name = location.hash.replace(/^#\//, "").split("?")[0];
  return Object.hasOwn(PAGES, name) ? name : "endpoints";
}

function open(moves) {
  leave?.();
  document.querySelectorAll("dialog[open]").forEach((box) => box.close());
  const name = page();
  for (const link of pages.children) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} – hookward`;
  main.replaceChildren();
  leave = PAGES[name].open(main);
  if (moves) main.focus();
}

function signIn() {
  leave?.();
  leave = null;
  document.querySelectorAll("dialog[open]").forEach((box) => box.close());
  pages.hidden = out.hidden = true;
  document.title = "Sign in – hookward";
  const wrong = h("p", { class: "wrong", role: "alert" });
  const token = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true, name: "token" });
  const form = h("form", {
    submit: async (event) => {
      event.preventDefault();
      wrong.textContent = "";
      try {
        await ask("POST", "/session", { token: token.value.trim() });
        signedIn(true);
      } catch (problem) {
        wrong.textContent = problem.status === 401 ? "This is not the token." : problem.message;
        token.select();
      }
    },
  },
    h("h1", {}, "Sign in"),
    h("p", { class: "soft" }, "With the token that admin.token names in the configuration."),
    h("label", {}, "Token", token), wrong,
    h("button", { class: "main" }, "Sign in"));
  show(main, h("div", { class: "card sign-in" }, form));
  token.focus();
}

function signedIn(moves) {
  pages.hidden = out.hidden = false;
  open(moves);
}

out.addEventListener("click", async () => {
  try { await ask("DELETE", "/session"); } catch (problem) { notice(problem.message); return; }
  signIn();
});
onSignedOut(signIn);
// Its fragment names no page: going there would leave this one.
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", () => { if (!pages.hidden) open(true); });

try {
  await get("/session");
  signedIn(false);
} catch (problem) {
  signIn();
  if (problem.status !== 401) notice(problem.message);
}
