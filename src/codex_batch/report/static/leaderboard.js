// Sorts the tables of a leaderboard by their headings, and shows one scorer at a time.
const byOrder = new Intl.Collator("en", { numeric: true });

function sortTable(table, place, down) {
  const body = table.tBodies[0];
  const value = (row) => row.children[place].dataset.value;
  // What has no value stands last either way.
  const rows = [...body.rows].sort((left, right) => {
    const a = value(left), b = value(right);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const numbers = Number(a) - Number(b);
    return (Number.isNaN(numbers) ? byOrder.compare(a, b) : numbers) * (down ? -1 : 1);
  });
  body.replaceChildren(...rows);
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    if (index === place) heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
    const arrow = heading.querySelector(".arrow");
    if (arrow) arrow.textContent = index === place ? (down ? " ▼" : " ▲") : "";
  });
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((heading, place) => {
    if (!heading.dataset.sort) return;
    const first = heading.dataset.sort === "down";
    heading.replaceChildren(make("button", { type: "button", class: "heading", onclick: () => {
      const sorted = heading.getAttribute("aria-sort");
      sortTable(table, place, sorted ? sorted === "ascending" : first);
    } }, heading.textContent, make("span", { class: "arrow", "aria-hidden": "true" })));
  });
}

function choice(form, title, id, options, onchange) {
  const select = make("select", { id, onchange: () => onchange(Number(select.value)) },
    options.map(([value, label]) => make("option", { value }, label)));
  form.append(make("label", { class: id }, make("span", {}, title), select));
}

function startLeaderboard() {
  theme();
  const form = byId("choices"), parts = [...document.querySelectorAll(".of-scorer")];
  form.addEventListener("submit", (event) => event.preventDefault());
  const tables = parts.map((part) => part.querySelector("table"));
  tables.forEach(sortable);
  const show = (chosen) => parts.forEach((part, place) => { part.hidden = place !== chosen; });
  if (parts.length > 1) {
    choice(form, "Scorer", "choose-scorer", parts.map((part, place) => [place, part.dataset.scorer]), show);
  }
  // Where headings have no room there is a list of them.
  const headings = [...tables[0].tHead.rows[0].cells].map((heading, place) => [place, heading]).filter(([, heading]) => heading.dataset.sort);
  choice(form, "Sort by", "choose-order", headings.map(([place, heading]) => [place, place ? heading.textContent : "Rank"]), (place) => {
    for (const table of tables) sortTable(table, place, table.tHead.rows[0].cells[place].dataset.sort === "down");
  });
  show(0);
  form.hidden = false;
  document.documentElement.dataset.ready = "";
}

startLeaderboard();
