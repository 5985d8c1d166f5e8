"use strict";
// The drawings, once plotly is there, and what switches them.

const showHeatmaps = (search) => {
  const choice = byId("metric");
  for (const metric of metrics) choice.append(element("option", metric));
  for (const parent of data.parents) {
    const frame = element("div");
    const drawing = element("div", undefined, "heatmap");
    drawing.tabIndex = 0;
    drawing.setAttribute("role", "application");
    frame.append(element("h3", `against ${parent}`), drawing);
    byId("heatmaps").append(frame);
  }
  // Only now has each its width.
  for (const drawing of document.querySelectorAll(".heatmap")) Plotly.newPlot(drawing, [], {}, CONFIG);
  const tell = (words) => { byId("cell").textContent = words; };
  const choose = (layer, kind) => search([layer, ...kind.split("*")].join(" ").trim());
  const draw = () => {
    const metric = choice.value;
    byId("meaning").textContent = `${metric}: ${MEANING[metric]}. A cell of several tensors shows the worst.`;
    const drawn = drawHeatmaps(data, metric, byId("logarithmic").checked, byId("heatmaps"), tell, choose);
    if (drawn < data.layers.names.length) tell(`the ${drawn} worst of ${data.layers.names.length} layers are drawn`);
  };
  const suit = () => { byId("logarithmic").checked = LOGARITHMIC.includes(choice.value); draw(); };
  choice.addEventListener("change", suit);
  byId("logarithmic").addEventListener("change", draw);
  suit();
  return draw;
};

const drawMaps = metrics.length ? showHeatmaps(search) : () => {};
byId("sizes-note").textContent = histogramNote(data);
if (data.sweep) {
  byId("sweep").hidden = false;
  byId("sweep-note").textContent = sweepNote(data.sweep, data.sweep_unit);
}
const drawCharts = () => {
  drawHistogram(data, byId("histogram"));
  if (data.sweep) drawSweep(data.sweep, byId("curve"));
};
drawCharts();
showTheme(() => { drawMaps(); drawCharts(); });
document.documentElement.dataset.ready = "true";
