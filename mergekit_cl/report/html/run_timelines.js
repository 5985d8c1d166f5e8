// What happened step by step: the gate's looks, the drift statistic, the training loss.

const drawGate = (place) => {
  const kinds = [...new Set(data.gate.map((one) => `${one.suite} against ${one.against}`))];
  const symbols = { accept: "circle", reject: "x", inconclusive: "circle-open" };
  const traces = kinds.map((kind, k) => {
    const those = data.gate.filter((one) => `${one.suite} against ${one.against}` === kind);
    const reach = (one, side) => (one.interval ? Math.abs(one.interval[side] - one.delta) : 0);
    return {
      type: "scatter", mode: "markers", name: label(ending(kind, 50)),
      x: those.map((one) => one.step), y: those.map((one) => one.delta),
      error_y: { type: "data", symmetric: false, array: those.map((one) => reach(one, 1)), arrayminus: those.map((one) => reach(one, 0)) },
      marker: { color: paint(k), size: 10, symbol: those.map((one) => symbols[one.decision]) },
      text: those.map((one) => `${one.decision}, ${number(one.delta)}`), hovertemplate: "step %{x}: %{text}<extra>%{fullData.name}</extra>",
    };
  });
  const margins = [...new Set(data.gate.map((one) => one.margin))];
  const lines = margins.map((margin) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: margin, y1: margin, line: { color: colour("--bad"), width: 2, dash: "dash" },
  }));
  const layout = frame({ xaxis: axis("optimizer steps taken"), yaxis: axis("nats per token worse"), shapes: [...borders(), ...lines], annotations: began() });
  Plotly.react(place, traces, layout, CONFIG);
};

const drawDrift = (place) => {
  const { steps, statistic, threshold, alarms } = data.drift;
  const traces = [{ type: "scatter", mode: "lines", name: "statistic", x: steps, y: statistic, line: { color: paint(0) } }];
  if (alarms.length) {
    const at = alarms.map((step) => statistic[steps.indexOf(step)] ?? threshold);
    traces.push({ type: "scatter", mode: "markers", name: "alarm", x: alarms, y: at, marker: { color: colour("--bad"), size: 11, symbol: "x" } });
  }
  const line = threshold === null ? [] : [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: threshold, y1: threshold, line: { color: colour("--bad"), width: 2, dash: "dash" },
  }];
  const layout = frame({ xaxis: axis("optimizer steps taken"), yaxis: axis("statistic", { rangemode: "tozero" }), shapes: [...borders(), ...line], annotations: began() });
  Plotly.react(place, traces, layout, CONFIG);
};

// A running mean over about a fiftieth of the run, since single batches jump.
const smooth = (values) => {
  const reach = Math.max(1, Math.round(values.length / 100));
  return values.map((_, k) => {
    const near = values.slice(Math.max(0, k - reach), k + reach + 1).filter((v) => v !== null);
    return near.length ? near.reduce((sum, v) => sum + v, 0) / near.length : null;
  });
};

const drawLosses = (place) => {
  const { steps, loss, replay_loss: replayed } = data.training;
  const kinds = [["new rows", loss], ["replayed rows", replayed]].filter(([, values]) => values.some((v) => v !== null));
  const traces = kinds.flatMap(([name, values], k) => [
    { type: "scatter", mode: "lines", x: steps, y: values, opacity: 0.3, line: { color: paint(k), width: 1 }, showlegend: false, hoverinfo: "skip" },
    { type: "scatter", mode: "lines", name, x: steps, y: smooth(values), line: { color: paint(k) } },
  ]);
  const layout = frame({ xaxis: axis("optimizer steps taken"), yaxis: axis("nats per token"), shapes: borders(), annotations: began() });
  Plotly.react(place, traces, layout, CONFIG);
};
