"use strict";
// What needs no drawing: the decision, what was forgotten in words, tables, the config.

const data = JSON.parse(byId("data").textContent);
const scores = Object.keys(data.scores);
const UNITS = { loss: "nats per token, lower is better", accuracy: "share of rows, higher is better" };
const FEW = 20; // comparisons that are listed without being asked for
const BADGES = { accept: ["accepted", "good"], reject: ["rejected", "bad"], inconclusive: ["inconclusive", "bad"] };

const within = (one) =>
  one === null ? "–" : one[1] === null ? number(one[0]) : `${number(one[0])} [${number(one[1])}, ${number(one[2])}]`;

const showSummary = () => {
  byId("title").textContent = data.title;
  if (data.decision) {
    const [word, kind] = BADGES[data.decision];
    const badge = byId("decision");
    badge.hidden = false;
    badge.textContent = word;
    badge.classList.add(kind);
  }
  byId("sentences").append(list(data.sentences));
  if (!scores.length) return;
  const table = byId("derived");
  table.append(row(["", ...scores.map((score) => `${score}, ${UNITS[score]}`)].map((word) => element("th", word))));
  for (const name of ["average", "backward_transfer", "forward_transfer", "forgetting"]) {
    table.append(row([name.replace("_", " "), ...scores.map((score) => within(data.scores[score][name]))]));
  }
};

const showEntries = (score) => {
  const { tasks, rows, entries } = data.scores[score];
  const table = byId("entries");
  table.replaceChildren(row(["after", ...tasks].map((word) => element("th", word))));
  entries.forEach((line, k) => table.append(row([rows[k], ...line.map(within)])));
};

const showComparisons = () => {
  byId("gate").hidden = !data.gate.length;
  if (!data.gate.length) return;
  const heads = ["step", "suite", "against", "rows", "delta, nats per token", "interval", "margin", "power", "decision"];
  byId("looks").open = data.gate.length <= FEW;
  const table = byId("comparisons");
  table.append(row(heads.map((word) => element("th", word))));
  for (const one of data.gate) {
    const interval = one.interval ? `${number(one.interval[0])} to ${number(one.interval[1])}` : "–";
    const decision = element("td", one.decision, one.decision === "accept" ? "" : "broken");
    const cells = [one.step, one.suite, one.against, one.rows, number(one.delta), interval, number(one.margin)];
    table.append(row([...cells.map(String), one.power === null ? "–" : `${Math.round(one.power * 100)} %`, decision]));
  }
  byId("gate-note").textContent =
    "How much worse an update is than the model before the task (reference) or a release (anchor), " +
    "with one-sided bounds. Below the margin line it is accepted; what was rejected was taken back.";
};

showSummary();
showComparisons();
byId("config-text").textContent = data.config.join("\n");
