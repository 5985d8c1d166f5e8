// A map per parent: rows are layers, columns kinds of module, the first column the layer as a whole.

const MOST_ROWS = 300;
const LOGARITHMIC = ["rel_l2", "max_abs", "predicted_kl", "changed", "rounding_error"];
const MEANING = {
  rel_l2: "length of the difference over the length of the parent's weights",
  cosine: "cosine of the angle between merged and parent",
  max_abs: "largest difference of a weight",
  changed: "share of weights whose bits differ",
  sign_conflict: "share of the parents' updates that cancel because their signs differ",
  survival: "share of the update that rounding left",
  rounding_error: "length of what rounding did to the update over the length of the update",
  predicted_kl: "half the Fisher-weighted square of the difference, nats per example; it ranks",
  fallback: "share of weights whose Fisher is 0 everywhere",
};

const worse = (data, metric, one, other) => {
  if (one === null || one === undefined) return other;
  if (other === null || other === undefined) return one;
  return data.smaller_is_worse.includes(metric) ? Math.min(one, other) : Math.max(one, other);
};

// [parent][layer][column] of a metric, column 0 the layer; a cell of several tensors is its worst.
const cellsOf = (data, metric) =>
  data.parents.map((_, parent) => {
    const width = data.kinds.length + 1;
    const cells = data.layers.names.map((_, k) => {
      const cell = new Array(width).fill(null);
      cell[0] = data.layers.values[metric]?.[parent][k] ?? null;
      return cell;
    });
    const values = data.tensors.values[metric]?.[parent] ?? [];
    values.forEach((value, k) => {
      const line = cells[data.tensors.layer[k]];
      const column = data.tensors.kind[k] + 1;
      line[column] = worse(data, metric, line[column], value);
    });
    return cells;
  });

// Every layer, or the worst of them where there are too many to draw; in the order of the model.
const rowsToDraw = (data, metric, cells) => {
  const all = data.layers.names.map((_, k) => k);
  if (all.length <= MOST_ROWS) return all;
  const worst = all.map((k) => cells.reduce((so, one) => worse(data, metric, so, one[k][0]), null));
  const sign = data.smaller_is_worse.includes(metric) ? 1 : -1;
  const key = (k) => (worst[k] === null ? Infinity : sign * worst[k]);
  return all.sort((a, b) => key(a) - key(b)).slice(0, MOST_ROWS).sort((a, b) => a - b);
};

// The beginning that every numbered layer shares says nothing in a map of one model.
const sharedBeginning = (names) => {
  const numbered = names.filter((name) => /\d/.test(name)).map((name) => name.split("."));
  if (numbered.length < 2) return "";
  const shared = numbered[0].findIndex((part, k) => numbered.some((parts) => parts[k] !== part));
  return numbered[0].slice(0, Math.max(0, shared - 1)).map((part) => `${part}.`).join("");
};

const drawHeatmaps = (data, metric, logarithmic, place, tell, choose) => {
  const cells = cellsOf(data, metric);
  const rows = rowsToDraw(data, metric, cells);
  const scaled = (value) =>
    value === null ? null : logarithmic ? (value > 0 ? Math.log10(value) : null) : value;
  const known = cells.flatMap((one) => rows.flatMap((k) => one[k].map(scaled))).filter((v) => v !== null);
  const range = known.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const columns = ["whole layer", ...data.kinds];
  const beginning = sharedBeginning(data.layers.names);
  data.parents.forEach((parent, k) => {
    const drawing = place.querySelectorAll(".heatmap")[k];
    drawOne(drawing, { data, metric, logarithmic, parent, cells: cells[k], rows, columns, scaled, range, beginning }, tell, choose);
  });
  return rows.length;
};

const drawOne = (drawing, of, tell, choose) => {
  const { data, metric, logarithmic, parent, cells, rows, columns, scaled, range, beginning } = of;
  const letters = drawing.clientWidth < 480 ? 12 : 26;
  const size = theme().font.size;
  const about = (r, c) =>
    `${data.layers.names[rows[r]]}, ${columns[c]}: ${metric} ${number(cells[rows[r]][c])}`;
  const ticks = logarithmic ? powers(range) : {};
  const longest = Math.max(...columns.map((name) => Math.min(name.length, letters)));
  const trace = {
    type: "heatmap",
    z: rows.map((k) => cells[k].map(scaled)),
    text: rows.map((_, r) => columns.map((_, c) => label(about(r, c)))),
    hovertemplate: "%{text}<extra></extra>",
    colorscale: "Cividis",
    reversescale: data.smaller_is_worse.includes(metric),
    zmin: range[0],
    zmax: range[1] > range[0] ? range[1] : range[0] + 1e-9,
    xgap: 1,
    ygap: rows.length > 60 ? 0 : 1,
    colorbar: { orientation: "h", thickness: size * 0.8, y: 1, yanchor: "bottom", len: 1, ...ticks },
  };
  const layout = theme({
    height: rows.length * size * 1.35 + longest * size * 0.62 + size * 6,
    margin: { l: 10, r: 10, t: size * 4, b: 10 },
    xaxis: {
      tickvals: columns.map((_, c) => c),
      ticktext: columns.map((name) => label(ending(name.replace(/\.weight$/, ""), letters))),
      tickangle: -90, automargin: true, fixedrange: true, showgrid: false, zeroline: false,
    },
    yaxis: {
      tickvals: rows.map((_, r) => r),
      ticktext: rows.map((k) => label(ending(without(beginning, data.layers.names[k]), letters))),
      autorange: "reversed", automargin: true, fixedrange: true, showgrid: false, zeroline: false,
    },
    shapes: [],
  });
  Plotly.react(drawing, [trace], layout, CONFIG);
  drawing.setAttribute("aria-label", `Heat map of ${metric} against ${parent}: arrow keys move, Enter lists the tensors`);
  const pick = (r, c) => choose(data.layers.names[rows[r]], c ? data.kinds[c - 1] : "");
  drawing.onkeydown = (event) => walk(event, drawing, rows.length, columns.length, (r, c) => tell(`${parent}: ${about(r, c)}`), pick);
  drawing.removeAllListeners("plotly_click");
  drawing.on("plotly_click", ({ points: [point] }) => pick(point.y, point.x));
};

const without = (beginning, name) => (name.startsWith(beginning) ? name.slice(beginning.length) : name);

const powers = ([low, high]) => {
  const steps = Array.from({ length: 41 }, (_, k) => k - 30).filter((p) => p >= low && p <= high);
  const most = Math.ceil(steps.length / 5);
  const tickvals = steps.filter((_, k) => k % most === 0);
  if (tickvals.length < 2) return { tickvals: [low, high], ticktext: [low, high].map((v) => number(10 ** v)) };
  return { tickvals, ticktext: tickvals.map((p) => `1e${p}`) };
};

// A cell at a time by the arrow keys, framed and told.
const walk = (event, drawing, height, width, tell, pick) => {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const at = JSON.parse(drawing.dataset.at ?? "null");
  if (event.key === "Enter" && at) return pick(...at);
  const move = moves[event.key];
  if (!move) return undefined;
  event.preventDefault();
  const within = (value, end) => Math.max(0, Math.min(end - 1, value));
  const [r, c] = at ? [within(at[0] + move[0], height), within(at[1] + move[1], width)] : [0, 0];
  drawing.dataset.at = JSON.stringify([r, c]);
  const line = { color: colour("--accent"), width: 3 };
  Plotly.relayout(drawing, { shapes: [{ type: "rect", x0: c - 0.5, x1: c + 0.5, y0: r - 0.5, y1: r + 0.5, line }] });
  return tell(r, c);
};
