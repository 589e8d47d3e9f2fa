// Plots: the figures come ready; here they take on the colours of the page.

const drawn = new Map(); // element -> figure as it came

function theme() {
  const style = getComputedStyle(document.documentElement);
  return { ink: style.getPropertyValue("--ink").trim(), soft: style.getPropertyValue("--soft").trim(), line: style.getPropertyValue("--line").trim() };
}

// Greys of the figures that mean "ink", "grid" or "empty", by what they are on a light page.
const ROLES = { "#323F4B": "ink", "#52606D": "soft", "#E4E7EB": "line", "#CBD2D9": "line" };

function themed(value, colours) {
  if (typeof value === "string") return ROLES[value] ? colours[ROLES[value]] : value;
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((one) => themed(one, colours));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one, colours)]));
  return value;
}

export function draw(element, figure, size = {}) {
  drawn.set(element, figure);
  const { data, layout } = themed(figure, theme());
  const font = { ...layout.font, size: 12 };
  return Plotly.react(element, data, { ...layout, height: 340, ...size, font, autosize: true }, { responsive: true, displayModeBar: false });
}

export function redraw() {
  for (const [element, figure] of drawn) {
    if (element.isConnected) draw(element, figure, { height: element.clientHeight || 340 });
    else drawn.delete(element);
  }
}
