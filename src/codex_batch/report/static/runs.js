// The list of runs, with what it is searched for.
const Runs = { version: "", all: [] };

const COLUMNS = [
  ["Run", "", (run) => run.problem ? run.name : make("a", { href: `run/${run.key}/` }, run.name)],
  ["State", "nowrap", (run) => run.problem ? make("span", { class: "bad" }, run.problem) : make("span", { class: `status t-${STATE[run.state] || "none"}` }, run.state)],
  ["Done", "n", (run) => run.problem ? "" : `${format.number(run.done)}/${format.number(run.total)}`],
  ["Score", "n", (run) => run.score === null || run.score === undefined ? "–" : make("span", {}, format.score(run.score), make("span", { class: "below" }, run.scorer))],
  ["Model", "", (run) => [run.model, run.effort].filter(Boolean).join(", ")],
  ["Begun", "nowrap", (run) => run.created_at ? format.moment(run.created_at) : ""],
  ["Dataset", "", (run) => run.dataset || ""],
];
const STATE = { running: "running", completed: "completed", ended: "completed", died: "failed", interrupted: "interrupted" };

function drawRuns() {
  const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const shown = Runs.all.filter((run) => {
    const text = [run.name, run.state, run.model, run.effort, run.dataset, run.scorer, run.problem].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  byId("runs").replaceChildren(
    make("thead", {}, make("tr", {}, COLUMNS.map(([title, kind]) => make("th", { scope: "col", class: kind || null }, title)))),
    make("tbody", {}, shown.map((run) => make("tr", { "data-key": run.key },
      COLUMNS.map(([title, kind, cell], index) => make(index ? "td" : "th", { class: kind || null, scope: index ? null : "row", "data-label": index ? title : null }, cell(run)))))));
  const all = Runs.all.length;
  byId("shown").textContent = shown.length === all ? `${format.number(all)} ${all === 1 ? "run" : "runs"}` : `${format.number(shown.length)} of ${format.number(all)} runs`;
}

async function refreshRuns() {
  const change = await fetchPacked(`runs?version=${encodeURIComponent(Runs.version)}`);
  if (!change) return;
  Runs.version = change.version;
  Runs.all = change.runs;
  drawRuns();
}

async function startRuns() {
  theme();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", drawRuns);
  const again = async () => {
    try {
      if (!document.hidden) await refreshRuns();
      document.documentElement.dataset.ready = "";
    } catch (error) {
      Runs.version = "";
      byId("shown").replaceChildren(make("span", { class: "problem", role: "alert" }, `Not connected: ${error.message || error}`));
    }
    setTimeout(again, 2000);
  };
  await again();
}

startRuns();
