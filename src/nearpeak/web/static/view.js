// The results: blocks that come one by one, and the plan that is chosen among them.

import { by, lines, make, table } from "./dom.js";
import { draw } from "./draw.js";

const TITLES = { served: "Under the traffic, simulated", closed: "In the mean, closed forms" };
let shown; // what has come so far: {closed, served, pareto, runs, plans: {closed, served}, job}
let at; // {of, rank}: the plan that is looked at
let simulate; // what simulates a plan
let touched; // whether a person has chosen a plan: then none is chosen for them

export function start(job, onSimulate) {
  shown = { job, plans: {}, runs: new Map() };
  at = null;
  touched = false;
  simulate = onSimulate;
  by("view").replaceChildren();
}

export const current = () => at && { ...at, plan: shown.plans[at.of][at.rank] };

export function part(event, job, asked) {
  if (event.part === "plans") {
    shown.plans[event.of] = event.plans;
    if (!touched) at = { of: event.of, rank: 0 };
  } else if (event.part === "run") {
    const of = asked ?? { of: "served", rank: 0 };
    shown.runs.set(`${of.of} ${of.rank}`, { ...event, job });
  } else shown[event.part] = event;
  render();
}

function choose(of, rank) {
  at = { of, rank };
  touched = true;
  render();
  by(`choose-${of}-${rank}`)?.focus();
}

function render() {
  const view = by("view");
  const blocks = [];
  for (const of of ["served", "closed"]) if (shown[of]?.miss) blocks.push(section(TITLES[of], shown[of].text, make("p", { class: "miss" }, shown[of].miss)));
  if (!at) return view.replaceChildren(...blocks);
  const { plan } = current();
  const run = shown.runs.get(`${at.of} ${at.rank}`);
  const plots = [];
  const plot = (id, title, note, figure, size) => {
    const box = make("div", { id: `plot-${id}`, role: "img", "aria-label": title });
    plots.push([box, figure, size]);
    return section(title, note, box);
  };
  const number = at.rank + 1;
  blocks.push(cards(plan), ranking(),
    pair(launch(plan), shown.pareto && plot("pareto", "Speed for a user against output of a device", "At full load. No configuration beats the grey line in both.", shown.pareto.figure, { height: 390 })),
    run ? traffic(run, plot) : offer(),
    pair(plot("roofline", `Roofline of plan ${number}`, "One device, times as predicted.", plan.roofline,
      { height: plan.memory.layout.height + plan.steps.layout.height + 84 }),
      make("div", {}, plot("memory", "What fills the memory", "The cache is that of all requests in flight at their longest.", plan.memory, { height: plan.memory.layout.height }),
        plot("steps", "Where the time goes", `A decode step is bound by ${plan.row.bound}.`, plan.steps, { height: plan.steps.layout.height }))),
    section("What would move it", null, make("ul", {}, plan.levers.map((text) => make("li", {}, text))),
      make("p", { class: "soft" }, `Techniques in the plan: ${plan.techniques.join(", ") || "none"}. At least ${plan.quality} of the model's quality remains.`)));
  view.replaceChildren(...blocks);
  for (const [box, figure, size] of plots) draw(box, figure, size);
}

function section(title, note, ...children) {
  return make("section", {}, make("h2", {}, title), note ? make("p", { class: "soft" }, note) : null, children);
}

const pair = (...children) => make("div", { class: "pair" }, children.filter(Boolean));

function card(title, value, note) {
  return make("div", { class: "card" }, make("span", {}, title), make("b", {}, value), make("span", {}, note));
}

function cards(plan) {
  const { row } = plan;
  const figures = row.goals
    ? row.goals.map((goal) => card(goal.goal, goal.value, goal.holds ? "within the goal" : "above the goal"))
    : [card("mean time to first token", row.ttft, `80 % ${row.ttft_span}`), card("mean time per later token", row.tpot, `80 % ${row.tpot_span}`)];
  return make("div", { class: "cards" }, card(`plan ${at.rank + 1}`, row.devices, row.layout.join(", ")),
    card("formats", row.formats, `batch ${row.batch.join(", ")}`), ...figures,
    card(row.goals ? "a million tokens" : "a million, at full load", row.dollars, `${row.joules}, ${row.carbon} CO₂`), card("in all", `${row.hourly}/h`, `${row.output} a device`));
}

function ranking() {
  const known = ["served", "closed"].filter((of) => shown.plans[of]);
  const tabs = make("div", { class: "tabs", role: "group", "aria-label": "How plans are ranked" }, known.map((of) => make("button",
    { type: "button", id: `rank-${of}`, "aria-pressed": String(of === at.of), onclick: () => choose(of, 0) }, TITLES[of])));
  const served = at.of === "served";
  const heads = [["", ""], ["devices", "wraps"], ["layout", ""], ["formats", "wraps"], ["batch", "n"],
    ...(served ? [["goals", ""]] : [["TTFT", "n"], ["TPOT", "n"]]), ["tokens/s a device", "n"], ["$/h", "n"], [served ? "a million tokens" : "a million tokens, full load", "n"], ["bound by", ""]];
  const rows = shown.plans[at.of].map(({ row }, rank) => ({ class: rank === at.rank ? "chosen" : null, cells: [
    make("label", { class: "check" }, make("input", { type: "radio", name: "chosen", id: `choose-${at.of}-${rank}`, checked: rank === at.rank,
      "aria-label": `Plan ${rank + 1}`, onchange: () => choose(at.of, rank) }), ` ${rank + 1}`),
    row.devices, lines(row.layout), row.formats, lines(row.batch),
    ...(served ? [row.goals.map((goal) => make("div", { class: goal.holds ? null : "bad" }, `${goal.goal} ${goal.value}`))]
      : [[row.ttft, make("small", {}, row.ttft_span)], [row.tpot, make("small", {}, row.tpot_span)]]),
    row.output.replace(" tokens/s", ""), row.hourly, [row.dollars, make("small", {}, `${row.joules}, ${row.carbon} CO₂`)], [row.bound, make("small", {}, row.evidence)]] }));
  return make("section", {}, make("div", { class: "line" }, make("h2", {}, "Ranked plans"), tabs),
    make("p", { class: "soft" }, shown[at.of]?.text ?? ""), table(heads, rows, "Ranked plans"));
}

function launch(plan) {
  if (plan.launch.error) return section("Launch", null, make("p", {}, plan.launch.error));
  const names = Object.keys(plan.launch.files);
  const code = make("pre", { id: "script", tabindex: 0, "aria-label": "Launch script" });
  const copy = make("button", { type: "button", id: "copy", class: "main", onclick: () => copied(copy, code.textContent) }, "Copy");
  const show = (name) => {
    code.textContent = plan.launch.files[name];
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.textContent === name));
  };
  const tabs = make("div", { class: "tabs", role: "group", "aria-label": "Launch files" },
    names.map((name) => make("button", { type: "button", onclick: () => show(name) }, name)));
  show(names[0]);
  const away = make("a", { class: "button", id: "download", href: `/api/jobs/${shown.job}/files/${plan.launch.zip}`, download: "" }, "Download all");
  return make("section", {}, make("div", { class: "line" }, make("h2", {}, `Launch plan ${at.rank + 1}`), make("div", {}, copy, away)),
    names.length > 1 ? tabs : null, code);
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(by("script"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function offer() {
  return section("Under the traffic", "Percentiles, the timeline and other rates come from a simulation of this plan.",
    make("button", { type: "button", id: "run", onclick: () => simulate(current()) }, `Simulate plan ${at.rank + 1}`));
}

function traffic(run, plot) {
  const heads = [["", ""], ...["mean", "p50", "p90", "p95", "p99"].map((name) => [name, "n"])];
  const rows = run.percentiles.map((row) => ({ cells: heads.map(([name], n) => (n ? row[name] ?? "–" : row.figure)) }));
  const facts = make("dl", {}, Object.entries(run.facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const warned = run.saturated ? make("p", { class: "bad" }, "Saturated: requests come faster than they are served; these are the times of a growing queue.") : null;
  const away = make("a", { class: "button", href: `/api/jobs/${run.job}/files/timeline.json`, download: "" }, "Timeline for Perfetto");
  return make("div", {},
    make("section", {}, make("div", { class: "line" }, make("h2", {}, `Plan ${at.rank + 1} under the traffic`), away), warned, facts, table(heads, rows, "Times of requests")),
    pair(plot("spread", "How long requests take", "A curve that passes left of its triangle keeps that goal.", run.spread),
      plot("sensitivity", "At other rates", "Each goal's figure over its limit; above 100 % it is broken.", run.sensitivity)),
    plot("timeline", "Timeline", "What engines do at first (drag to pan or zoom, double-click for all); below, requests in the system over the whole run.", run.timeline, { height: 430 }));
}
