// Elements from plain values. Text is always set as text: nothing that a server or a person wrote becomes markup.

export const by = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Lines of text under one another.
export const lines = (texts) => texts.flatMap((text, at) => (at ? [make("br"), text] : [text]));

// A table: heads are [title, class]; rows are lists of cells, each text, an element, or a list of them.
export function table(heads, rows, caption) {
  return make("div", { class: "scroll" }, make("table", { class: "data" },
    make("caption", { class: "hidden" }, caption),
    make("thead", {}, make("tr", {}, heads.map(([title, kind]) => make("th", { scope: "col", class: kind }, title)))),
    make("tbody", {}, rows.map(({ cells, ...more }) => make("tr", more, cells.map((cell, at) => make("td", { class: heads[at][1] }, cell)))))));
}
