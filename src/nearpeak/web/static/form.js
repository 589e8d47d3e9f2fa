// The form: what it starts with, what it says, and where its mistakes are shown.

import { by, make } from "./dom.js";

const NUMBERS = ["rate", "burstiness", "isl", "osl", "spread", "speed_up", "requests", "accuracy"];
const FIGURES = { ttft: "first token", tpot: "later token", latency: "whole answer" };
const PERCENTILES = [50, 90, 99];
let catalogue;
let uploaded = ""; // the text of the file that was chosen

export function fill(found) {
  catalogue = found;
  const start = found.defaults;
  by("models").append(...found.models.map((one) => make("option", { value: one.id })));
  by("device-names").append(...found.devices.map((one) => make("option", { value: one.name }, one.title)));
  by("model").value = start.model;
  for (const name of NUMBERS) by(name).value = start[name];
  for (const name of ["engine", "objective"]) by(name).value = start[name];
  by("simulate").checked = start.simulate;
  for (const one of start.devices) addDevice(one);
  by("goals").tBodies[0].append(...Object.entries(FIGURES).flatMap(([figure, title]) => goalRow(figure, title, start.goals)));
  by("add").addEventListener("click", () => addDevice().querySelector("input").focus());
  by("model").addEventListener("input", describe);
  by("config").addEventListener("input", describe);
  by("file").addEventListener("change", async () => {
    const file = by("file").files[0];
    uploaded = (await file?.text()) ?? "";
    by("file-note").textContent = file ? `${file.name} is used, ${uploaded.split("\n").length.toLocaleString("en")} lines.` : "";
    by("trace").disabled = Boolean(file);
  });
  for (const radio of document.getElementsByName("source")) radio.addEventListener("change", showSource);
  describe();
  showSource();
}

function describe() {
  const one = catalogue.models.find((model) => model.id === by("model").value);
  const billions = (count) => `${(count / 1e9).toPrecision(3)}B`;
  const active = one && one.active < 0.95 * one.parameters ? `, ${billions(one.active)} active` : "";
  by("model-note").textContent = by("config").value.trim() ? "The pasted config.json is used."
    : one ? `${billions(one.parameters)} parameters${active}, context ${one.context.toLocaleString("en")}` : "";
}

function showSource() {
  const traced = document.querySelector("[name=source]:checked").value === "trace";
  by("drawn").hidden = traced;
  by("traced").hidden = !traced;
}

let made = 0;

function addDevice({ name = "", least = 1, most = 8, price = null } = {}) {
  const id = `device-${made++}`;
  const field = (part, title, value, more) => make("input", { "data-part": part, "aria-label": title, "aria-describedby": `${id}-error`, value: value ?? "", ...more });
  const row = make("div", { class: "devices", role: "group", "aria-label": "Device" },
    field("name", "Device", name, { list: "device-names", autocomplete: "off", spellcheck: "false" }),
    field("least", "From how many", least, { type: "number", min: 1 }),
    field("most", "To how many", most, { type: "number", min: 1 }),
    field("price", "Dollars per device and hour, if not the catalogue's", price, { type: "number", min: 0, step: "any" }),
    make("button", { type: "button", "aria-label": "Remove this device", onclick: () => row.remove() }, "×"),
    make("p", { class: "error", id: `${id}-error` }));
  const named = row.querySelector("input");
  const tell = () => {
    const known = catalogue.devices.find((one) => one.name === named.value);
    const price = row.querySelector("[data-part=price]");
    price.placeholder = known ? (known.price === null ? "none" : known.price.toFixed(2)) : "";
    named.title = known ? `${known.title}, ${(known.memory / 1e9).toFixed(0)} GB` : "";
  };
  named.addEventListener("input", tell);
  tell();
  by("devices").append(row);
  return row;
}

function goalRow(figure, title, goals) {
  const cells = PERCENTILES.map((of) => {
    const goal = goals.find((one) => one.figure === figure && one.of === of);
    return make("td", {}, make("input", { type: "number", min: 0, step: "any", "data-figure": figure, "data-of": of,
      "aria-label": `p${of} of the ${title}, milliseconds`, "aria-describedby": `goal-${figure}-error`, value: goal ? 1000 * goal.seconds : "" }));
  });
  return [make("tr", {}, make("th", { scope: "row" }, title), cells),
    make("tr", { class: "told" }, make("td", { colspan: 4 }, make("p", { class: "error", id: `goal-${figure}-error` })))];
}

// An empty number is one that the server will not take, and will say so beside its field.
const number = (input) => (input.value.trim() === "" ? null : Number(input.value));

export function read() {
  const traced = document.querySelector("[name=source]:checked").value === "trace";
  const form = { model: by("model").value.trim(), config: by("config").value.trim(), engine: by("engine").value,
    objective: by("objective").value, simulate: by("simulate").checked };
  for (const name of NUMBERS) form[name] = number(by(name));
  form.time_unit = Number(by("time_unit").value);
  form.trace = traced ? uploaded || by("trace").value || " " : "";
  form.devices = [...by("devices").children].map((row) => Object.fromEntries([...row.querySelectorAll("input")].map((input) =>
    [input.dataset.part, input.dataset.part === "name" ? input.value.trim() : number(input)])));
  form.goals = [...by("goals").querySelectorAll("input")].filter((input) => input.value.trim() !== "").map((input) =>
    ({ figure: input.dataset.figure, of: Number(input.dataset.of), seconds: Number(input.value) / 1000 }));
  return form;
}

function place(field, form) {
  const [kind, which, part] = field.split(".");
  if (kind === "devices" && which !== undefined) {
    const row = by("devices").children[Number(which)];
    return { input: row?.querySelector(`[data-part="${part ?? "name"}"]`), text: row?.querySelector(".error") };
  }
  if (kind === "goals" && which !== undefined) {
    const goal = part === undefined || /^\d+$/.test(which) ? form.goals[Number(which)] : { figure: which, of: Number(part) };
    const input = by("goals").querySelector(`[data-figure="${goal?.figure}"][data-of="${goal?.of}"]`);
    return { input, text: by(`goal-${goal?.figure}-error`) };
  }
  return { input: by(kind), text: document.querySelector(`[data-error="${kind}"]`) };
}

// Shows each mistake beside its field, and goes to the first.
export function mistakes(errors, form) {
  for (const text of document.querySelectorAll(".error")) text.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  let first = null;
  for (const [field, message] of Object.entries(errors)) {
    const { input, text } = place(field.replace(/^form\./, ""), form);
    const shown = text ?? document.querySelector('[data-error=""]');
    shown.textContent = [shown.textContent, message].filter(Boolean).join(" ");
    input?.setAttribute("aria-invalid", "true");
    if (input && !first) first = input;
    input?.closest("details")?.setAttribute("open", "");
  }
  first?.focus();
}
