// The task matrix as a map, and each task's held-out score over the run.

const NAMED = 24; // letters of a name on an axis
const paint = (k) => PARENT_COLOURS[k % PARENT_COLOURS.length];
const axis = (title, more = {}) => ({
  gridcolor: colour("--line"), zeroline: false, fixedrange: true, automargin: true, title: { text: title, standoff: 8 }, ...more,
});
const frame = (more) => theme({
  height: theme().font.size * 27, margin: { l: 60, r: 15, t: 25, b: 50 }, showlegend: true,
  legend: { orientation: "h", y: -0.25 }, ...more,
});
const borders = () => data.borders.map(({ step }) => ({
  type: "line", yref: "paper", x0: step, x1: step, y0: 0, y1: 1,
  line: { color: colour("--quiet"), width: 1, dash: "dot" },
}));
const began = () => data.borders.map(({ step, task }) => ({
  text: label(ending(task, NAMED)), x: step, y: 1, yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
}));

const drawMatrix = (score, place, tell) => {
  const { tasks, rows, entries } = data.scores[score];
  const size = theme().font.size;
  const z = entries.map((line) => line.map((one) => (one === null ? null : one[0])));
  const about = (r, c) => `after ${rows[r]}, ${tasks[c]}: ${score} ${within(entries[r][c])}`;
  const trace = {
    type: "heatmap", z, colorscale: "Cividis", reversescale: score === "loss", xgap: 2, ygap: 2,
    text: rows.map((_, r) => tasks.map((_, c) => label(about(r, c)))), hovertemplate: "%{text}<extra></extra>",
    colorbar: { thickness: size * 0.8, title: { text: score } },
  };
  const known = z.flat().filter((v) => v !== null);
  const middle = (Math.min(...known) + Math.max(...known)) / 2;
  const bright = (value) => (score === "loss" ? value < middle : value > middle);
  const few = rows.length * tasks.length <= 150;
  const layout = theme({
    height: Math.max(rows.length * size * 2.4 + size * 9, size * 16), margin: { l: 10, r: 10, t: 10, b: 10 },
    xaxis: axis("held-out rows of", { tickvals: tasks.map((_, c) => c), ticktext: tasks.map((t) => label(ending(t, NAMED))), showgrid: false }),
    yaxis: axis("after learning", { tickvals: rows.map((_, r) => r), ticktext: rows.map((t) => label(ending(t, NAMED))), autorange: "reversed", showgrid: false }),
    annotations: few ? z.flatMap((line, r) => line.map((value, c) => ({ value, r, c }))).filter(({ value }) => value !== null).map(({ value, r, c }) => ({
      text: number(value), x: c, y: r, showarrow: false, font: { size, color: bright(value) ? "#1b1f24" : "#ffffff" },
    })) : [],
    shapes: [],
  });
  Plotly.react(place, [trace], layout, CONFIG);
  place.setAttribute("aria-label", `Heat map of the ${score} of each task after each: arrow keys move`);
  place.onkeydown = (event) => stride(event, place, rows.length, tasks.length, (r, c) => tell(about(r, c)));
};

// A cell at a time by the arrow keys, framed and told.
const stride = (event, place, height, width, tell) => {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const at = JSON.parse(place.dataset.at ?? "null");
  const inside = (value, end) => Math.max(0, Math.min(end - 1, value));
  const [r, c] = at ? [inside(at[0] + move[0], height), inside(at[1] + move[1], width)] : [0, 0];
  place.dataset.at = JSON.stringify([r, c]);
  const line = { color: colour("--accent"), width: 3 };
  Plotly.relayout(place, { shapes: [{ type: "rect", x0: c - 0.5, x1: c + 0.5, y0: r - 0.5, y1: r + 0.5, line }] });
  tell(r, c);
};

const drawCurves = (score, place) => {
  const { tasks, steps, entries } = data.curves[score];
  const traces = tasks.flatMap((task, c) => {
    const known = steps.map((x, k) => [x, entries[k][c]]).filter(([, one]) => one !== null);
    const x = known.map(([at]) => at);
    const bounds = known.every(([, one]) => one[1] !== null);
    const band = bounds && known.length ? [{
      type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()], hoverinfo: "skip", showlegend: false,
      y: [...known.map(([, one]) => one[2]), ...known.map(([, one]) => one[1]).reverse()],
      fill: "toself", fillcolor: paint(c), opacity: 0.18, line: { width: 0 },
    }] : [];
    return [...band, {
      type: "scatter", mode: "lines+markers", name: label(ending(task, 40)), x, y: known.map(([, one]) => one[0]),
      line: { color: paint(c) }, text: known.map(([, one]) => within(one)), hovertemplate: "step %{x}: %{text}<extra>%{fullData.name}</extra>",
    }];
  });
  const layout = frame({ xaxis: axis("optimizer steps taken"), yaxis: axis(UNITS[score]), shapes: borders(), annotations: began() });
  Plotly.react(place, traces, layout, CONFIG);
};
