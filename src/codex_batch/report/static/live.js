// The page of a run that goes on: its server is asked for what has changed.
class LivePage {
  constructor(data, table, dialog) {
    this.data = data;
    this.table = table;
    this.dialog = dialog;
    this.version = data.live.version;
    this.state = byId("live");
  }

  start() {
    const again = async () => {
      try {
        if (!document.hidden) {
          await this.refresh();
          await this.refreshSample();
        }
        document.documentElement.dataset.live = "on";
      } catch (error) {
        document.documentElement.dataset.live = "off";
        this.state.textContent = `Not connected: ${error.message || error}`;
        this.version = null;
      }
      setTimeout(again, this.data.live.every_ms);
    };
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh().catch(() => {}); });
    setTimeout(again, this.data.live.every_ms);
  }

  async refresh() {
    const change = await fetchPacked(`changes?version=${encodeURIComponent(this.version ?? "")}`);
    if (!change) return;
    this.version = change.version;
    this.state.textContent = change.state;
    Object.assign(this.data, change.data);
    format.currency = this.data.currency;
    Segments.kept.clear();
    // Made by the page's own templates, in which all that a sample contains is escaped; its policy runs no script in it.
    const figures = new DOMParser().parseFromString(change.figures, "text/html");
    const open = [...document.querySelectorAll("#figures details")].map((one) => one.open);
    byId("figures").replaceChildren(...figures.body.childNodes);
    document.querySelectorAll("#figures details").forEach((one, index) => { one.open = Boolean(open[index]); });
    const rows = readRows(this.data, change.rows);
    const next = runTable(this.data, rows, (row) => this.dialog.open(row));
    this.table.become(next.columns, next.filters, rows);
    if (this.dialog.row) this.dialog.row = rows.find((row) => row.segment === this.dialog.row.segment) || this.dialog.row;
  }

  // The sample in the dialog, as long as it runs and once more when it has ended.
  async refreshSample() {
    const row = this.dialog.row;
    if (!row || !this.dialog.detail || ended(this.dialog.detail)) return;
    const [detail] = await Segments.load(row.segment);
    if (this.dialog.row !== row || JSON.stringify(detail) === JSON.stringify(this.dialog.detail)) return;
    const node = this.dialog.node;
    const atEnd = node.scrollHeight - node.scrollTop - node.clientHeight < 40;
    const top = node.scrollTop;
    this.dialog.detail = detail;
    this.dialog.draw(this.dialog.content());
    node.scrollTop = atEnd ? node.scrollHeight : top;
  }
}

const ended = (detail) => !["running", "not run"].includes(detail.status);
