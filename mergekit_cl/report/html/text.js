// Words and numbers: whatever came from a file goes into the page as text, never as markup.

const element = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

const byId = (id) => document.getElementById(id);

// Plotly reads a few tags and entities in labels: this shows them as they are written.
const label = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const number = (value) => {
  if (value === null || value === undefined) return "–";
  if (value === 0 || Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
};

// The end of a path or name tells more than its beginning.
const ending = (text, length) => (text.length > length ? "…" + text.slice(1 - length) : text);

const row = (cells, tag = "td") => {
  const made = element("tr");
  for (const cell of cells) {
    made.append(cell instanceof Node ? cell : element(tag, cell));
  }
  return made;
};

const list = (words) => {
  const made = element("ul");
  for (const word of words) made.append(element("li", word));
  return made;
};

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// What every drawing shares: the page's colours, its text size, no frame, no buttons of plotly's.
const theme = (more = {}) => {
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.78;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--text"), size, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: colour("--back"), font: { color: colour("--text") } },
    ...more,
  };
};

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false };
const PARENT_COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"];
