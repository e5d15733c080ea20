// A table that is sorted by its headings and filtered by the form above it. A hundred lines at a time.
class SampleTable {
  constructor(columns, filters, searched, open, hint) {
    this.hint = hint;
    this.page = 0;
    this.pageLines = 100;
    this.columns = columns;
    this.filters = filters;
    this.searched = searched;
    this.open = open;
    this.all = [];
    this.shown = [];
    this.sort = { column: null, descending: false };
    this.values = new Map();
    this.search = "";
  }

  fill(rows) {
    this.all = rows;
    for (const row of rows) row.text = this.searched(row).join("\n").toLowerCase();
    this.drawFilters();
    this.drawHead();
    this.refresh();
  }

  // Other rows with their columns and filters; what is searched, chosen, sorted and shown stays.
  become(columns, filters, rows) {
    const sorted = this.sort.column && this.sort.column.title;
    const chosen = [...this.values];
    this.columns = columns;
    this.sort.column = columns.find((column) => column.title === sorted) || null;
    this.all = rows;
    for (const row of rows) row.text = this.searched(row).join("\n").toLowerCase();
    if (!(document.activeElement instanceof HTMLSelectElement)) {
      this.filters = filters;
      this.values.clear();
      this.drawChoices();
      for (const [key, value] of chosen) this.choose(key, value);
    }
    this.drawHead();
    this.refresh(this.page);
  }

  drawFilters() {
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    let waiting;
    const search = make("input", {
      type: "search", id: "search", autocomplete: "off", placeholder: this.hint,
      oninput: () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { this.search = search.value.trim().toLowerCase(); this.refresh(); }, 120);
      },
    });
    this.clear = make("button", { type: "button", class: "quiet", hidden: true,
      onclick: () => { this.reset(); search.focus(); } }, "Show all");
    form.append(make("label", {}, make("span", {}, "Search"), search), this.clear);
    this.drawChoices();
  }

  drawChoices() {
    const form = byId("filters");
    for (const label of [...form.querySelectorAll("label")].slice(1)) label.remove();
    for (const filter of this.filters) {
      const options = filter.options(this.all);
      if (options.length < 2 && !filter.always) continue;
      filter.select = make("select", { id: `filter-${filter.key}`, onchange: () => this.setFilter(filter.key, filter.select.value) },
        make("option", { value: "" }, filter.any || "all"),
        options.map(([value, label]) => make("option", { value }, label)));
      this.clear.before(make("label", {}, make("span", {}, filter.title), filter.select));
    }
  }

  setFilter(key, value) {
    const found = this.choose(key, value);
    if (found) this.refresh();
    return found;
  }

  choose(key, value) {
    const filter = this.filters.find((candidate) => candidate.key === key);
    if (!filter || !filter.select) return false;
    filter.select.value = value;
    if (filter.select.value !== value) return false;
    this.values.set(key, value);
    return true;
  }

  reset() {
    byId("search").value = this.search = "";
    for (const filter of this.filters) if (filter.select) filter.select.value = "";
    this.values.clear();
    this.refresh();
  }

  drawHead() {
    this.headings = this.columns.map((column) => make("th", { scope: "col", class: column.class },
      make("button", { type: "button", class: "heading", onclick: () => this.sortBy(column) }, column.title,
        make("span", { class: "arrow", "aria-hidden": "true" }))));
    this.body = make("tbody");
    this.body.addEventListener("click", (event) => {
      const line = event.target.closest("tr");
      if (line && !String(getSelection())) this.open(this.shown[this.page * this.pageLines + line.sectionRowIndex]);
    });
    byId("rows").replaceChildren(make("thead", {}, make("tr", {}, this.headings)), this.body);
  }

  sortBy(column) {
    const again = this.sort.column === column;
    const first = Boolean(column.descending);
    if (again && this.sort.descending !== first) this.sort = { column: null, descending: false };
    else this.sort = { column, descending: again ? !this.sort.descending : first };
    this.refresh();
  }

  refresh(page = 0) {
    const active = this.filters.filter((filter) => this.values.get(filter.key));
    const words = this.search.split(/\s+/).filter(Boolean);
    this.shown = this.all.filter((row) => words.every((word) => row.text.includes(word))
      && active.every((filter) => filter.test(row, this.values.get(filter.key))));
    const { column, descending } = this.sort;
    if (column) {
      const turn = descending ? -1 : 1;
      const key = column.value;
      // What has no value stands last either way.
      const missing = (value) => value === null || value === undefined || value === "";
      this.shown.sort((left, right) => {
        const a = key(left), b = key(right);
        if (missing(a) || missing(b)) return missing(a) - missing(b) || left.n - right.n;
        const order = typeof a === "string" ? collator.compare(a, b) : a - b;
        return order * turn || left.n - right.n;
      });
    }
    this.columns.forEach((one, index) => {
      const heading = this.headings[index];
      if (one === column) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
      heading.querySelector(".arrow").textContent = one === column ? (descending ? " ▼" : " ▲") : "";
    });
    this.clear.hidden = !active.length && !words.length;
    this.page = Math.min(page, Math.max(0, Math.ceil(this.shown.length / this.pageLines) - 1));
    this.drawPage();
  }

  drawPage() {
    const start = this.page * this.pageLines;
    const lines = this.shown.slice(start, start + this.pageLines);
    this.body.replaceChildren(...lines.map((row) => make("tr", { "data-id": row.id },
      this.columns.map((column, index) => make(index ? "td" : "th", { class: column.class, scope: index ? null : "row" }, column.cell(row))))));
    const count = this.shown.length, all = this.all.length;
    const range = count > this.pageLines ? `, ${format.number(start + 1)} to ${format.number(start + lines.length)} here` : "";
    byId("shown").textContent = count === all
      ? `${format.number(all)} ${all === 1 ? "sample" : "samples"}${range}`
      : `${format.number(count)} of ${format.number(all)} samples${range}`;
    this.drawPager(Math.ceil(count / this.pageLines));
  }

  drawPager(pages) {
    const pager = byId("pager");
    if (pages < 2) return pager.replaceChildren();
    const go = (page) => () => {
      this.page = page;
      this.drawPage();
      byId("samples").scrollIntoView();
      (pager.querySelector("[aria-current]") || pager).focus({ preventScroll: true });
    };
    const near = [...new Set([0, this.page - 2, this.page - 1, this.page, this.page + 1, this.page + 2, pages - 1])]
      .filter((page) => page >= 0 && page < pages);
    const buttons = near.flatMap((page, index) => [
      index && page - near[index - 1] > 1 ? make("span", { class: "muted" }, "…") : null,
      make("button", { type: "button", class: "quiet", "aria-label": `Page ${page + 1} of ${pages}`,
        "aria-current": page === this.page ? "page" : null, onclick: go(page) }, String(page + 1)),
    ]);
    pager.replaceChildren(
      make("button", { type: "button", class: "quiet", disabled: this.page === 0, onclick: go(this.page - 1) }, "Previous"),
      ...buttons.filter(Boolean),
      make("button", { type: "button", class: "quiet", disabled: this.page === pages - 1, onclick: go(this.page + 1) }, "Next"));
  }

  // Which of the shown rows comes before or after one.
  neighbour(row, step) {
    const place = this.shown.indexOf(row);
    return place < 0 ? null : this.shown[place + step] || null;
  }
}

const collator = new Intl.Collator("en", { numeric: true });
