// All of a sample, in a dialog: what was asked and answered, scores, diff, transcript.

const block = (text, properties) => make("pre", { tabindex: "0", ...properties }, text);

// An id for people: with its epoch where there are several.
const nameOf = (row) => (row.epochs > 1 ? `${row.id}#${row.epoch}` : row.id);

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

function section(title, ...content) {
  return make("section", {}, make("h3", {}, title), content);
}

function showScores(scores) {
  return section("Scores", make("ul", { class: "score-list" }, scores.map((score) => make("li", {},
    make("p", {},
      scoreMark([0, score.value ?? null, score.passed ?? null, score.error ? 1 : 0], true), " ",
      make("strong", {}, score.scorer),
      score.duration_ms === undefined ? null : make("span", { class: "muted" }, ` ${format.duration(score.duration_ms)}`)),
    score.answer === undefined ? null : make("p", {}, make("span", { class: "muted" }, "answer "), make("code", {}, score.answer)),
    score.error === undefined ? null : block(score.error, { class: "error" }),
    score.explanation === undefined ? null
      : score.explanation.includes("\n") ? block(score.explanation) : make("div", { class: "prose boxed" }, score.explanation),
    score.metadata === undefined ? null : make("details", {}, make("summary", {}, "metadata"), block(asText(score.metadata)))))));
}

const DIFF_LINES = 1500;

function diffLines(text) {
  const lines = text.replace(/\n$/, "").split("\n");
  const draw = (line) => {
    const kind = /^(diff |index |--- |\+\+\+ |new file|deleted file|rename |similarity )/.test(line) ? "d-head"
      : line.startsWith("@@") ? "d-place" : line.startsWith("+") ? "d-add" : line.startsWith("-") ? "d-del" : null;
    return make("span", { class: kind }, line + "\n");
  };
  const node = make("pre", { class: "diff", tabindex: "0" }, lines.slice(0, DIFF_LINES).map(draw));
  if (lines.length <= DIFF_LINES) return node;
  const more = make("button", { type: "button", class: "quiet", onclick: () => {
    node.append(...lines.slice(DIFF_LINES).map(draw));
    more.remove();
  } }, `Show ${format.number(lines.length - DIFF_LINES)} more lines`);
  return make("div", {}, node, more);
}

function diffSummary(text) {
  let added = 0, removed = 0, files = 0;
  for (const line of text.split("\n")) {
    if (line.startsWith("diff --git ")) files += 1;
    else if (line.startsWith("+") && !line.startsWith("+++")) added += 1;
    else if (line.startsWith("-") && !line.startsWith("---")) removed += 1;
  }
  return `${files} ${files === 1 ? "file" : "files"}, +${added} −${removed}`;
}

const ENTRY_TITLES = {
  user: "User", agent: "Agent", reasoning: "Reasoning", plan: "Plan", command: "Command", files: "File change",
  tool: "Tool", search: "Web search", error: "Error",
};

function showEntry(entry) {
  const title = [ENTRY_TITLES[entry.kind] || "", entry.title || ""].filter(Boolean).join(": ");
  const failed = entry.kind === "error" || entry.status === "failed" || entry.status === "declined" || (entry.exit_code ?? 0) !== 0;
  const facts = [
    entry.phase === "commentary" ? "commentary" : null,
    entry.open ? "never completed" : null,
    entry.exit_code === undefined ? (entry.kind === "command" || entry.kind === "files" || entry.kind === "tool") && entry.status : `exit ${entry.exit_code}`,
    entry.duration_ms === undefined ? null : format.duration(entry.duration_ms),
  ].filter(Boolean).join(" · ");
  const head = make("p", { class: "entry-head" }, make("strong", {}, title || "Item"),
    facts ? make("span", { class: failed ? "bad" : "muted" }, ` ${facts}`) : null);
  const body = [];
  if (entry.kind === "command") {
    body.push(block("$ " + entry.text, { class: "command" }));
  } else if (entry.kind === "reasoning") {
    body.push(make("details", {}, make("summary", {}, "show"), make("div", { class: "prose" }, entry.text || "")));
  } else if (entry.kind === "tool" || entry.kind === "note" || entry.kind === "error" || entry.kind === "turn") {
    if (entry.text) body.push(block(entry.text));
  } else if (entry.text) {
    body.push(make("div", { class: "prose" }, entry.text));
  }
  for (const change of entry.changes || []) {
    body.push(make("p", { class: "path" }, make("code", {}, change.path), " ", make("span", { class: "muted" }, change.change || "")));
    if (change.diff) body.push(change.change === "add" && !/^[@+-]/.test(change.diff) ? block(change.diff) : diffLines(change.diff));
  }
  if (entry.output) body.push(block(entry.output, { class: "output" }));
  return make("li", { class: `entry e-${/^[a-z]+$/.test(entry.kind) ? entry.kind : "note"}` }, head, body);
}

function showAttempts(attempts, error) {
  const many = attempts.length > 1;
  return section("Transcript", attempts.map((attempt, index) => {
    const entries = attempt.entries || [];
    const facts = [attempt.worker, attempt.duration_ms === undefined ? null : format.duration(attempt.duration_ms),
      attempt.queued_ms ? `queued ${format.duration(attempt.queued_ms)}` : null, attempt.note].filter(Boolean).join(" · ");
    const body = [
      attempt.error && (many || attempt.error !== error) ? block(attempt.error, { class: "error" }) : null,
      entries.length ? make("ol", { class: "entries" }, entries.map(showEntry)) : make("p", { class: "muted" }, "No events are kept of it."),
    ];
    if (!many) return make("div", {}, make("p", { class: "muted small" }, facts), body);
    return make("details", { class: "attempt", open: index === attempts.length - 1 },
      make("summary", {}, make("strong", {}, `Attempt ${attempt.attempt}`), " ", attempt.status ? statusMark(attempt.status) : null,
        make("span", { class: "muted small" }, ` ${facts}`)), body);
  }));
}

function showFacts(detail) {
  const usage = detail.usage || {};
  const tokens = usage.total_tokens === undefined ? null
    : `${format.number(usage.total_tokens)} (${format.number(usage.input_tokens ?? 0)} in, ${format.number(usage.cached_input_tokens ?? 0)} of them cached; ${format.number(usage.output_tokens ?? 0)} out)`;
  const facts = [
    ["time", detail.duration_ms === undefined ? null : format.duration(detail.duration_ms) + (detail.queued_ms ? `, queued ${format.duration(detail.queued_ms)} before` : "")],
    ["tokens", tokens],
    ["cost", detail.cost === undefined && detail.turn_id === undefined ? null : format.money(detail.cost)],
    ["turns", detail.turns],
    ["tool calls", detail.tool_calls],
    ["worker", detail.worker],
    ["started", detail.started_at === undefined ? null : format.moment(detail.started_at)],
    ["thread", detail.thread_id],
    ["turn", detail.turn_id],
    ...Object.entries(detail.settings || {}).map(([key, value]) => [key, asText(value)]),
    ["tags", detail.tags ? detail.tags.join(", ") : null],
    ["artifacts", detail.artifacts ? detail.artifacts.join(", ") : null],
  ];
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", { class: "facts" }, known.map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, String(value)))));
}

function showTask(detail) {
  const prompts = detail.prompts || [];
  return [
    section(prompts.length > 1 ? "Prompts" : "Prompt", prompts.map((prompt) => make("div", { class: "prose boxed" }, prompt))),
    detail.target === undefined ? null : section("Target", block(asText(detail.target))),
  ];
}

// `task`: what was asked is said here, not above.
function showDetail(detail, task) {
  if (!detail) return [make("p", { class: "muted" }, "This run has no such sample.")];
  return [
    make("p", {}, statusMark(detail.status, detail.limit)),
    detail.error ? block(detail.error, { class: "error" }) : null,
    detail.scores ? showScores(detail.scores) : null,
    task ? showTask(detail) : null,
    section("Answer", detail.response === undefined ? make("p", { class: "muted" }, "none") : make("div", { class: "prose boxed" }, detail.response)),
    detail.diff === undefined ? null : section("Diff", make("details", { open: detail.diff.length < 20000 },
      make("summary", {}, diffSummary(detail.diff)), diffLines(detail.diff))),
    detail.attempts ? showAttempts(detail.attempts, detail.error) : null,
    section("Facts", showFacts(detail),
      detail.metadata === undefined ? null : make("details", {}, make("summary", {}, "metadata"), block(asText(detail.metadata)))),
  ].flat().filter(Boolean);
}

function showPair(pair, names) {
  const task = (detail) => JSON.stringify([detail.prompts, detail.target]);
  const same = pair[0] && pair[1] && task(pair[0]) === task(pair[1]);
  return [
    same ? showTask(pair[0]) : null,
    make("div", { class: "sides" }, ["A", "B"].map((side, index) => make("div", { class: "half" },
      make("h3", { class: "half-title" }, make("span", { class: `side side-${side.toLowerCase()}` }, side), names[index]),
      showDetail(pair[index], !same)))),
  ].flat(2).filter(Boolean);
}

class SampleDialog {
  constructor(table, names) {
    this.table = table;
    this.names = names;
    this.node = byId("sample");
    this.row = null;
    this.node.addEventListener("close", () => this.closed());
    this.node.addEventListener("click", (event) => { if (event.target === this.node) this.node.close(); });
    this.node.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "j" || event.key === "k") this.step(event.key === "j" ? 1 : -1);
    });
  }

  step(by) {
    const next = this.row && this.table.neighbour(this.row, by);
    if (next) this.open(next);
  }

  async open(row) {
    if (!row) return;
    this.row = row;
    this.draw([make("p", { class: "muted" }, "Loading…")]);
    if (!this.node.open) this.node.showModal();
    this.node.scrollTop = 0;
    if (location.hash !== `#sample-${row.n}`) history.replaceState(null, "", `#sample-${row.n}`);
    let content;
    this.detail = null;
    try {
      this.detail = (await Segments.get(row.segment))[row.item];
      content = this.content();
    } catch (error) {
      content = [make("p", { class: "problem", role: "alert" }, String(error.message || error))];
    }
    if (this.row === row) this.draw(content);
  }

  content() {
    return this.names ? showPair(this.detail, this.names) : showDetail(this.detail, true);
  }

  draw(content) {
    const row = this.row;
    const place = this.table.shown.indexOf(row);
    const where = place < 0 ? "" : `${format.number(place + 1)} of ${format.number(this.table.shown.length)}`;
    const button = (label, key, by) => make("button", { type: "button", class: "quiet", title: `${label} (${key})`,
      disabled: !this.table.neighbour(row, by), onclick: () => this.step(by) }, label);
    const focused = document.activeElement && this.node.contains(document.activeElement) ? document.activeElement.textContent : null;
    const bar = make("div", { class: "bar" },
      make("h2", { id: "sample-title", tabindex: "-1" }, nameOf(row)),
      make("span", { class: "muted small" }, where),
      make("span", { class: "bar-buttons" }, button("Previous", "k", -1), button("Next", "j", 1),
        make("button", { type: "button", class: "quiet", title: "Close (Esc)", onclick: () => this.node.close() }, "Close")));
    this.node.replaceChildren(bar, make("div", { class: this.names ? "content wide" : "content" }, content));
    const again = [...bar.querySelectorAll("button")].find((one) => one.textContent === focused && !one.disabled);
    (again || byId("sample-title")).focus({ preventScroll: true });
  }

  closed() {
    const row = this.row;
    this.row = null;
    this.node.replaceChildren();
    history.replaceState(null, "", location.pathname + location.search);
    const line = [...document.querySelectorAll("#rows tbody tr")].find((one, index) => this.table.shown[this.table.page * this.table.pageLines + index] === row);
    if (line) line.querySelector("button").focus();
  }
}
