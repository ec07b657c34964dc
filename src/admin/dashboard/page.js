// What pages have in common.

import { notice } from "./dom.js";

// Does something at once, now and then while the page is looked at, and whenever it is called.
export function every(pause, act) {
  let timer = null, running = false, again = false, stopped = false, said = "";
  async function run() {
    if (stopped) return;
    if (running) { again = true; return; }
    running = true;
    clearTimeout(timer);
    try {
      await act();
      said = "";
    } catch (problem) {
      // Once for each trouble, not every few seconds.
      if (!stopped && problem.status !== 401 && problem.message !== said) notice(problem.message);
      said = problem.message;
    }
    running = false;
    if (again) { again = false; run(); return; }
    timer = setTimeout(wait, pause);
  }
  function wait() {
    const isBusy = document.hidden || document.querySelector("dialog[open]");
    if (isBusy) timer = setTimeout(wait, pause);
    else run();
  }
  run.stop = () => { stopped = true; clearTimeout(timer); };
  run();
  return run;
}
