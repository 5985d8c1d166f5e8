// All tensors: words that are searched for, columns that sort, fifty rows at a time.

const PER_PAGE = 50;

const tensorTable = (data) => {
  const metrics = Object.keys(data.tensors.values);
  const names = data.tensors.names;
  const lower = names.map((name) => name.toLowerCase());
  const state = { words: "", sort: metrics[0], down: !data.smaller_is_worse.includes(metrics[0]), page: 0, rows: [] };
  const all = names.flatMap((_, k) =>
    data.parents.map((_, p) => [k, p]).filter(([, p]) => metrics.some((m) => data.tensors.values[m][p][k] !== null)));
  const valueOf = ([k, p], column) =>
    column === "tensor" ? k : column === "parent" ? p : data.tensors.values[column][p][k];

  const select = () => {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter(([k]) => words.every((word) => lower[k].includes(word)));
    const sign = state.down ? -1 : 1;
    found.sort((one, other) => {
      const a = valueOf(one, state.sort);
      const b = valueOf(other, state.sort);
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b);
    });
    state.rows = found;
    state.page = 0;
  };

  const head = () => {
    const cells = ["tensor", ...(data.parents.length > 1 ? ["parent"] : []), ...metrics].map((column) => {
      const cell = element("th", undefined, column === "parent" ? "text" : "");
      const button = element("button", column);
      button.type = "button";
      cell.setAttribute("aria-sort", column !== state.sort ? "none" : state.down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        state.down = column === state.sort ? !state.down : metrics.includes(column) && !data.smaller_is_worse.includes(column);
        state.sort = column;
        select();
        show();
        [...byId("rows").querySelectorAll("th button")].find((b) => b.textContent === column).focus();
      });
      cell.append(button);
      return cell;
    });
    return row([...cells, ...["dtype", "shape"].map((word) => element("th", word, "text"))]);
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(state.rows.length / PER_PAGE));
    const from = state.page * PER_PAGE;
    const body = element("tbody");
    for (const [k, p] of state.rows.slice(from, from + PER_PAGE)) {
      const dtype = data.tensors.dtype[k];
      body.append(row([
        element("td", names[k], "name"),
        ...(data.parents.length > 1 ? [element("td", ending(data.parents[p], 32), "text")] : []),
        ...metrics.map((metric) => number(data.tensors.values[metric][p][k])),
        element("td", dtype === null ? "" : data.dtypes[dtype], "text"),
        element("td", data.tensors.shape[k]?.join(" × ") ?? "", "text"),
      ]));
    }
    const top = element("thead");
    top.append(head());
    byId("rows").replaceChildren(top, body);
    byId("count").textContent = `${state.rows.length} of ${all.length} rows`;
    byId("place").textContent = `page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  };

  const search = (words) => {
    state.words = words;
    select();
    show();
  };
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("previous").addEventListener("click", () => { state.page -= 1; show(); });
  byId("next").addEventListener("click", () => { state.page += 1; show(); });
  search("");
  return (words) => { byId("search").value = words; search(words); byId("tensors").focus(); };
};
