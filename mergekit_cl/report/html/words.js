"use strict";
// What needs no drawing: verdict, model, policy, provenance, tensors. Shown before plotly is read.

const data = JSON.parse(byId("data").textContent);
const metrics = Object.keys(data.tensors.values);

const showVerdict = () => {
  byId("title").textContent = data.title;
  if (!data.judged) return;
  const { lossy, reasons, advice } = data.verdict;
  const badge = byId("verdict");
  badge.hidden = false;
  badge.textContent = lossy ? "lossy" : "ok";
  badge.classList.add(lossy ? "bad" : "good");
  if (reasons.length) byId("reasons").append(list(reasons));
  if (advice.length) byId("reasons").append(element("p", "What would help:"), list(advice));
};

const showModel = () => {
  const columns = [...metrics, "predicted_loss", "loss_rise", "fisher_share"];
  const known = columns.filter((c) => data.model.some((one) => typeof one[c] === "number"));
  const table = byId("model");
  table.append(row(["metric", ...data.parents.map((p) => ending(p, 40))].map((word) => element("th", word))));
  for (const column of known) table.append(row([column, ...data.model.map((one) => number(one[column]))]));
  for (const note of data.notes ?? []) byId("measured").append(element("p", note, "note"));
  for (const one of data.overlap ?? []) {
    const words = [`${one.compared} tensors compared with ${one.parent}`];
    if (one.only_merged.length) words.push(`${one.only_merged.length} only in ${data.merged}`);
    if (one.only_parent.length) words.push(`${one.only_parent.length} only in the parent`);
    if (one.shapes.length) words.push(`${one.shapes.length} of another shape`);
    byId("measured").append(element("p", words.join(", "), "note"));
  }
  if (!data.measured) return;
  byId("measured").append(element("p", `Measured on ${data.measured.rows} rows, ${data.measured.tokens} tokens:`));
  const rows = [["merged", data.measured.merged], ...data.measured.parents.map((one) => [one.parent, one])];
  const measured = element("table");
  measured.append(row(["model", "nats per token", "merged less this"].map((word) => element("th", word))));
  for (const [name, one] of rows) measured.append(row([ending(name, 40), number(one.loss), number(one.rise)]));
  byId("measured").append(measured);
};

const showPolicy = () => {
  const { model, layers, tensors } = data.policy;
  byId("policy").hidden = !data.judged;
  const table = byId("thresholds");
  table.append(row(["metric", "lossy", ...data.parents.map((p) => ending(p, 40))].map((word) => element("th", word))));
  for (const one of model) {
    const values = one.values.map((value, k) => element("td", number(value), one.broken[k] && !isExcused(one.metric) ? "broken" : ""));
    table.append(row([one.metric, `${one.below ? "below" : "above"} ${number(one.threshold)}`, ...values]));
  }
  const patterns = [["layers", layers], ["tensors", tensors]].flatMap(([what, those]) =>
    Object.entries(those).map(([pattern, limits]) =>
      `${what} ${pattern}: ${Object.entries(limits).map(([m, v]) => `${m} ${number(v)}`).join(", ")}`));
  if (patterns.length) byId("patterns").append(list(patterns));
  const failed = data.findings.map((one) =>
    `${one.level} ${one.name} against ${one.parent}: ${one.metric} ${number(one.value)}, threshold ${number(one.threshold)}`);
  if (failed.length > 50) failed.splice(50, failed.length, `and ${failed.length - 50} more`);
  byId("findings").append(failed.length ? list(failed) : element("p", "No threshold is broken.", "note"));
  if (data.known.length) byId("findings").append(element("p", `${data.known.length} more are no worse than in ${data.baseline}.`, "note"));
};

// What rounding took is kept for the next merge there.
const isExcused = (metric) => data.carried && ["survival", "rounding_error"].includes(metric);

const showProvenance = () => {
  if (!data.provenance) return;
  byId("provenance").hidden = false;
  const { command, again, options, inputs, versions, weights_digest: digest } = data.provenance;
  const place = byId("made");
  if (again) place.append(element("p", "The command to repeat it:"), element("pre", again));
  const table = element("table");
  table.append(row(["input", "role", "weights digest"].map((word) => element("th", word, "text"))));
  for (const one of inputs) {
    const path = one.revision ? `${one.path} at ${one.revision}` : one.path;
    table.append(row([path, one.role, one.weights_digest ?? ""].map((word) => element("td", word, "name text"))));
  }
  table.append(row([command, "output", digest].map((word) => element("td", word, "name text"))));
  const frame = element("div", undefined, "scroll");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Inputs and output");
  frame.append(table);
  const more = element("details");
  more.append(element("summary", "Options and versions"), element("pre", JSON.stringify({ options, versions }, null, 2)));
  place.append(frame, more);
};

showVerdict();
showModel();
showPolicy();
showProvenance();
const search = tensorTable(data);
