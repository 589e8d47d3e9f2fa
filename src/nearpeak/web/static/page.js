// The page: asks the server for plans, follows the work, and shows what comes.

import { by } from "./dom.js";
import { redraw } from "./draw.js";
import { fill, mistakes, read } from "./form.js";
import { current, part, start } from "./view.js";

let running = null; // {job, source}
let turn = 0; // of what was asked for last; an answer to anything before comes too late

function say(text, bad = false) {
  by("said").textContent = text;
  by("status").classList.toggle("bad", bad);
}

function working(on) {
  by("plan").disabled = on;
  by("cancel").hidden = !on;
  by("work").hidden = !on;
  by("count").textContent = "";
  document.body.dataset.state = on ? "working" : "idle";
}

const end = (job) => fetch(`/api/jobs/${job}`, { method: "DELETE", keepalive: true });

async function cancel() {
  const ended = running;
  running = null;
  turn += 1;
  working(false);
  ended?.source.close();
  if (ended) await end(ended.job);
}

// Starts a job and shows its events; ``asked`` is the plan that is to be simulated, if one is.
async function begin(form, asked) {
  await cancel();
  const mine = turn;
  mistakes({}, form);
  working(true);
  say("Checking");
  let answer;
  let response;
  try {
    response = await fetch("/api/jobs", { method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify(asked ? { form, plan: asked.plan.key } : { form }) });
    answer = await response.json();
  } catch {
    working(false);
    return say("The server does not answer; is nearpeak web still running?", true);
  }
  if (mine !== turn) return answer.job && end(answer.job);
  if (!response.ok) return failed(answer.errors, form);
  const { job } = answer;
  if (!asked) start(job, (plan) => begin(form, plan));
  const source = new EventSource(`/api/jobs/${job}/events`);
  running = { job, source };
  let errors = null;
  const began = performance.now();
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.kind === "progress") progress(event);
    else if (event.kind === "part") part(event, job, asked);
    else if (event.kind === "error") errors = event.errors;
    else if (event.kind === "end") {
      source.close();
      running = null;
      if (errors) failed(errors, form);
      else {
        working(false);
        say(`Done in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
      }
    }
  };
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED || running?.source !== source) return;
    running = null;
    working(false);
    say("The server has gone; start nearpeak web again.", true);
  };
}

function progress({ text, done, total }) {
  const known = total > 0;
  if (by("said").textContent !== text) say(text);
  by("count").textContent = known ? `${done} of ${total}` : "";
  if (known) Object.assign(by("progress"), { max: total, value: done });
  else by("progress").removeAttribute("value");
}

function failed(errors, form) {
  working(false);
  mistakes(errors, form);
  const place = Object.keys(errors).some(Boolean) ? "Something in the form cannot be as it is; see beside the fields." : Object.values(errors)[0];
  say(place, true);
}

const COLOURS = ["auto", "light", "dark"];

function colour(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  by("theme").textContent = name[0].toUpperCase() + name.slice(1);
  by("theme").setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system" : name}`);
  localStorage.setItem("colours", name);
  redraw();
}

by("theme").addEventListener("click", () => colour(COLOURS[(COLOURS.indexOf(localStorage.getItem("colours") ?? "auto") + 1) % 3]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
colour(COLOURS.includes(localStorage.getItem("colours")) ? localStorage.getItem("colours") : "auto");

fill(await (await fetch("/api/catalogue")).json());
by("form").addEventListener("submit", (event) => { event.preventDefault(); begin(read()); });
by("cancel").addEventListener("click", () => { cancel(); say("Cancelled. What had come is below."); });
addEventListener("pagehide", () => { if (running) end(running.job); });
document.body.dataset.state = "idle";
