// The histogram of updates beside what rounding can tell apart, and the curve of a sweep.

// Between neighbours of a number x of this type lie 2^low to 2^high times |x|.
const STEPS = { BF16: [-8, -7], F16: [-11, -10], F32: [-24, -23], F64: [-53, -52] };
const BINS = 60;

const drawHistogram = (data, place) => {
  const sizes = data.tensors.update_size.map((one) => one.filter((v) => v !== null && v > 0));
  const logs = sizes.map((one) => one.map((v) => Math.log10(v)));
  const all = logs.flat();
  const bands = data.dtypes.filter((dtype) => STEPS[dtype]).map((dtype) => ({
    dtype, low: STEPS[dtype][0] * Math.log10(2), high: STEPS[dtype][1] * Math.log10(2),
  }));
  const start = all.reduce((so, v) => Math.min(so, v), Infinity);
  const end = all.reduce((so, v) => Math.max(so, v), -Infinity);
  const traces = logs.map((x, k) => ({
    type: "histogram", x, name: label(ending(data.parents[k], 40)), opacity: 0.65,
    marker: { color: PARENT_COLOURS[k % PARENT_COLOURS.length] },
    xbins: { start: start - 1e-6, end: end + 0.1, size: Math.max((end - start) / BINS, 0.02) },
    hovertemplate: "%{y} tensors near 10^%{x:.2f}<extra></extra>",
  }));
  const grid = { gridcolor: colour("--line"), zeroline: false, fixedrange: true };
  const layout = theme({
    barmode: "overlay", bargap: 0.02, height: theme().font.size * 28,
    margin: { l: 50, r: 15, t: 30, b: 50 }, showlegend: true,
    legend: { orientation: "h", y: -0.25 },
    xaxis: { ...grid, title: { text: "rms of update / rms of weights, log10" } },
    yaxis: { ...grid, title: { text: "tensors" } },
    shapes: bands.map(({ low, high }) => ({
      type: "rect", yref: "paper", x0: low, x1: high, y0: 0, y1: 1, layer: "below",
      fillcolor: colour("--accent"), opacity: 0.25, line: { width: 0 },
    })),
    annotations: bands.map(({ dtype, high }) => ({
      text: label(`${dtype} step`), x: high, y: 1, yref: "paper", xanchor: "left", yanchor: "bottom",
      showarrow: false,
    })),
  });
  Plotly.react(place, traces, layout, CONFIG);
};

const histogramNote = (data) => {
  const gone = data.tensors.update_size.flat().filter((v) => v === 0 || v === null).length;
  const which = data.exact_updates ? "before rounding, derived from survival and rounding error" : "as stored";
  return [
    `Each tensor counts once per parent: the root mean square of its update (${which}) over that of`,
    "its weights. The band of a type is its rounding step for a weight of that size; an update left",
    "of the band is smaller than the step of a typical weight, so rounding takes much of it. Single",
    "weights spread around their tensor's value.",
    gone ? `Not drawn: ${gone} with no update, or of which rounding left nothing.` : "",
  ].join(" ").trim();
};

// Of two inputs a curve over the first's weight; of more, points in the order they were looked at.
const drawSweep = (sweep, place) => {
  const two = sweep.best.length === 2;
  const order = sweep.weights.map((_, k) => k);
  if (two) order.sort((a, b) => sweep.weights[a][0] - sweep.weights[b][0]);
  const at = (weights, k) => (two ? weights[0] : k + 1);
  const traces = Object.entries(sweep.predicted).map(([parent, values], k) => ({
    type: "scatter", mode: two ? "lines+markers" : "markers", name: label(ending(parent, 40)),
    x: order.map((point, n) => at(sweep.weights[point], n)),
    y: order.map((point) => values[point]),
    text: order.map((point) => sweep.weights[point].map(number).join(", ")),
    hovertemplate: "weights %{text}: %{y:.4g}<extra></extra>",
    marker: { color: PARENT_COLOURS[k % PARENT_COLOURS.length] },
  }));
  const grid = { gridcolor: colour("--line"), zeroline: false, fixedrange: true };
  const layout = theme({
    height: theme().font.size * 26, margin: { l: 60, r: 15, t: 25, b: 50 }, showlegend: true,
    legend: { orientation: "h", y: -0.25 },
    xaxis: { ...grid, title: { text: two ? "weight of the first input" : "point" } },
    yaxis: { ...grid, title: { text: sweep.measure }, rangemode: "tozero" },
    shapes: two ? [{
      type: "line", yref: "paper", x0: sweep.best[0], x1: sweep.best[0], y0: 0, y1: 1,
      line: { color: colour("--accent"), width: 2, dash: "dot" },
    }] : [],
  });
  Plotly.react(place, traces, layout, CONFIG);
};

const sweepNote = (sweep, unit) =>
  `${sweep.measure}, ${unit}. The best of ${sweep.best_of} for the input that is worst off: ` +
  `${sweep.best.map(number).join(", ")}` +
  (sweep.best.length === 2 ? ", the dotted line." : ".");
