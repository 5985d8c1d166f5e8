"use strict";
// The drawings, once plotly is there, and what switches them.

const reveal = (id, there) => { byId(id).hidden = !there; return there; };

const drawScores = () => {
  const score = byId("score").value;
  showEntries(score);
  byId("matrix-note").textContent = `Row by row what was learned, column by column what is asked: ${score}, ${UNITS[score]}.`;
  drawMatrix(score, byId("heatmap"), (words) => { byId("cell").textContent = words; });
  drawCurves(score, byId("curves"));
};

const parts = [
  [reveal("matrix", scores.length > 0) && reveal("forgetting", true), drawScores],
  [data.gate.length > 0, () => drawGate(byId("timeline"))],
  [reveal("drift", data.drift !== null), () => drawDrift(byId("statistic"))],
  [reveal("losses", data.training.steps.length > 0), () => drawLosses(byId("training"))],
].filter(([there]) => there).map(([, draw]) => draw);

for (const score of scores) byId("score").append(element("option", score));
reveal("score-controls", scores.length > 1);
byId("score").addEventListener("change", drawScores);
if (data.drift) {
  const { alarms } = data.drift;
  byId("drift-note").textContent =
    "The detector's statistic of the loss of new rows before they are learned, and its threshold; " +
    (alarms.length ? `${alarms.length} alarm${alarms.length > 1 ? "s" : ""}, the first at step ${alarms[0]}.` : "no alarm.");
}
byId("losses-note").textContent = data.training.every > 1
  ? `Every ${data.training.every}th step is drawn; metrics.jsonl has all.`
  : "Thin: each step's batch; thick: a running mean.";
for (const draw of parts) draw();
showTheme(() => { for (const draw of parts) draw(); });
document.documentElement.dataset.ready = "true";
