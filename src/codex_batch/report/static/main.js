// What the two kinds of pages show in their tables.

function distinct(rows, values) {
  const counts = new Map();
  for (const row of rows) for (const value of values(row)) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([value, count]) => [value, `${value} (${format.number(count)})`]);
}

function identity(row, open) {
  return [
    make("div", { class: "who" },
      make("button", { type: "button", class: "link id", onclick: (event) => { event.stopPropagation(); open(row); } }, nameOf(row)),
      row.tags.slice(0, 4).map((tag) => make("span", { class: "tag" }, tag))),
    row.prompt ? make("div", { class: "line one muted" }, row.prompt) : null,
  ];
}

const scoreOf = (scores, place) => scores.find((score) => score[0] === place) || null;
const valueOf = (score) => (score && !score[3] ? score[1] : null);
const number = (key, title, say) => ({
  title, class: "n", descending: true, value: (row) => row[key], cell: (row) => say(row[key]),
});

const tagFilter = { key: "tag", title: "Tag", always: false, options: (rows) => distinct(rows, (row) => row.tags), test: (row, value) => row.tags.includes(value) };

function runTable(data, rows, open) {
  const scorers = data.scorers.slice(0, 6);
  const columns = [
    { title: "Sample", class: "sample", value: (row) => nameOf(row), cell: (row) => identity(row, open) },
    { title: "Status", class: "nowrap", value: (row) => row.status, cell: (row) => statusMark(row.status, row.limit) },
    ...scorers.map((name, place) => ({
      title: name, class: "score", descending: true, value: (row) => valueOf(scoreOf(row.scores, place)),
      cell: (row) => scoreMark(scoreOf(row.scores, place)),
    })),
    number("duration_ms", "Time", format.duration),
    number("tokens", "Tokens", format.number),
  ];
  if (rows.some((row) => row.cost !== null)) columns.push(number("cost", "Cost", format.money));
  if (rows.some((row) => row.tool_calls)) columns.push(number("tool_calls", "Tools", format.number));
  if (rows.some((row) => row.attempts > 1)) columns.push(number("attempts", "Attempts", format.number));
  columns.push({
    title: "Answer", class: "answer", value: (row) => row.error || row.answer,
    cell: (row) => make("div", { class: row.error ? "line bad" : "line" }, row.error || row.answer),
  });
  const outcome = (score) => (!score ? "none" : score[3] ? "error" : score[2] === null ? "value" : score[2] ? "passed" : "failed");
  const filters = [
    { key: "status", title: "Status", options: (all) => distinct(all, (row) => [row.status]), test: (row, value) => row.status === value },
    ...data.scorers.map((name, place) => ({
      key: `score-${place}`, title: name,
      options: (all) => {
        const words = { passed: "passed", failed: "failed", value: "a value", error: "not scored: error", none: "no score" };
        return distinct(all, (row) => [outcome(scoreOf(row.scores, place))]).map(([value, label]) => [value, label.replace(value, words[value])]);
      },
      test: (row, value) => outcome(scoreOf(row.scores, place)) === value,
    })),
    tagFilter,
  ];
  const searched = (row) => [nameOf(row), row.prompt, row.answer, row.error, row.status, ...row.tags];
  return new SampleTable(columns, filters, searched, open, "id, prompt, answer, error…");
}

function comparisonTable(data, rows, open) {
  const change = (row, place) => {
    const a = row.a && valueOf(scoreOf(row.a.scores, place));
    const b = row.b && valueOf(scoreOf(row.b.scores, place));
    return a === null || b === null || a === undefined || b === undefined ? null : b - a;
  };
  const direction = (value) => (value === null ? "none" : value > 1e-9 ? "better" : value < -1e-9 ? "worse" : "same");
  // Epochs of one sample are one sample here: better is what is better on average over them, as in the table above.
  const changes = data.scorers.map((name, place) => {
    const sums = new Map();
    for (const row of rows) {
      const [sum, count] = sums.get(row.id) || [0, 0];
      const value = change(row, place);
      sums.set(row.id, value === null ? [sum, count] : [sum + value, count + 1]);
    }
    return new Map([...sums].map(([id, [sum, count]]) => [id, direction(count ? sum / count : null)]));
  });
  const arrow = (left, right) => [left, make("span", { class: "muted" }, " → "), right];
  const scorers = data.scorers.slice(0, 6);
  const difference = (key, say) => (row) => {
    if (!row.a || !row.b || row.a[key] === null || row.b[key] === null) return "–";
    return format.signed(row.b[key] - row.a[key], say);
  };
  const differenceValue = (key) => (row) => (row.a && row.b && row.a[key] !== null && row.b[key] !== null ? row.b[key] - row.a[key] : null);
  const columns = [
    { title: "Sample", class: "sample", value: (row) => nameOf(row), cell: (row) => [
      ...identity(row, open), row.note ? make("div", { class: "note small" }, row.note) : null] },
    { title: "Status", class: "nowrap", value: (row) => `${row.a ? row.a.status : ""} ${row.b ? row.b.status : ""}`, cell: (row) => {
      const [a, b] = [row.a, row.b].map((side) => (side ? statusMark(side.status) : make("span", { class: "muted" }, "–")));
      return row.a && row.b && row.a.status === row.b.status ? b : arrow(a, b);
    } },
    ...scorers.map((name, place) => ({
      title: name, class: "score", descending: true, value: (row) => change(row, place),
      cell: (row) => {
        const [a, b] = [row.a, row.b].map((side) => scoreMark(side && scoreOf(side.scores, place)));
        const way = direction(change(row, place));
        if (way === "same" || way === "none") return make("span", {}, row.a && row.b && way === "same" ? [b, make("span", { class: "muted" }, " same")] : arrow(a, b));
        return make("span", { class: `change ${way}` }, make("span", { class: "way" }, way === "better" ? "▲ " : "▼ "), arrow(a, b));
      },
    })),
    { title: "Time", class: "n", descending: true, value: differenceValue("duration_ms"), cell: difference("duration_ms", format.duration) },
    { title: "Tokens", class: "n", descending: true, value: differenceValue("tokens"), cell: difference("tokens", format.number) },
  ];
  if (rows.some((row) => row.a && row.b && row.a.cost !== null && row.b.cost !== null)) {
    columns.push({ title: "Cost", class: "n", descending: true, value: differenceValue("cost"), cell: difference("cost", format.money) });
  }
  const words = { better: "better", worse: "worse", same: "same", none: "not comparable" };
  const filters = [
    {
      key: "change", title: "Change", always: true,
      options: () => data.scorers.flatMap((name, place) => Object.keys(words).map((way) => {
        const count = [...changes[place].values()].filter((one) => one === way).length;
        return count ? [`${place}:${way}`, `${name}: ${words[way]} (${format.number(count)})`] : null;
      })).filter(Boolean),
      test: (row, value) => {
        const split = value.indexOf(":");
        return changes[Number(value.slice(0, split))].get(row.id) === value.slice(split + 1);
      },
    },
    {
      key: "status", title: "Status", options: (all) => distinct(all, (row) => [statusPair(row)]), test: (row, value) => statusPair(row) === value,
    },
    tagFilter,
  ];
  const statusPair = (row) => (row.a && row.b ? (row.a.status === row.b.status ? row.a.status : `${row.a.status} → ${row.b.status}`) : row.note);
  const searched = (row) => [nameOf(row), row.prompt, row.note || "", ...row.tags];
  return new SampleTable(columns, filters, searched, open, "id, prompt…");
}

const named = (columns, values) => Object.fromEntries(columns.map((column, index) => [column, values[index]]));

function readRows(data, lines) {
  return lines.map((line, n) => {
    const row = named(data.columns, line);
    for (const side of ["a", "b"]) if (row[side]) row[side] = named(data.side, row[side]);
    return { ...row, n, epochs: data.epochs, segment: line[data.columns.length], item: line[data.columns.length + 1] };
  });
}

async function start() {
  theme();
  const [data, lines] = await Promise.all([unpackElement("data"), unpackElement("rows")]);
  Segments.about = data.segments;
  format.currency = data.currency;
  const rows = readRows(data, lines);
  let dialog;
  const open = (row) => dialog.open(row);
  const table = (data.kind === "run" ? runTable : comparisonTable)(data, rows, open);
  dialog = new SampleDialog(table, data.names || null);
  table.fill(rows);
  byId("figures").addEventListener("click", (event) => {
    const button = event.target.closest("button[data-filter]");
    const mark = event.target.closest("[data-n]");
    if (mark) open(table.all[Number(mark.dataset.n)]);
    if (!button) return;
    table.reset();
    const found = table.setFilter(button.dataset.filter, button.dataset.value);
    if (button.dataset.tag) table.setFilter("tag", button.dataset.tag);
    if (found) byId("samples").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    byId("samples").focus({ preventScroll: true });
  });
  const openLinked = () => {
    const linked = /^#sample-(\d+)$/.exec(location.hash);
    if (linked) open(table.all[Number(linked[1])]);
  };
  addEventListener("hashchange", openLinked);
  openLinked();
  if (data.live) new LivePage(data, table, dialog).start();
  document.documentElement.dataset.ready = "";
}

start().catch((error) => {
  byId("shown").replaceChildren(make("span", { class: "problem", role: "alert" }, `The samples cannot be shown: ${error.message || error}`));
});
