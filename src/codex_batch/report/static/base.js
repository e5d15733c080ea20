"use strict";

// What a sample contains becomes text nodes, never markup.
function make(name, properties, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const byId = (id) => document.getElementById(id);

async function unpack(packed) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old to show the samples: it cannot decompress them (no DecompressionStream)");
  }
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// From the server of a live page: packed as what stands in a page; null: nothing has changed.
async function fetchPacked(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (response.status === 204) return null;
  if (!response.ok) throw new Error((await response.text()).trim() || `the server answered ${response.status}`);
  return unpack(await response.text());
}

const packed = (name) => byId(`packed-${name}`);
const unpackElement = (name) => unpack(packed(name).textContent);

// Segments: in the page, or scripts beside it that call codexPoolSegment. The last few are kept.
const Segments = {
  about: null,
  arrived: new Map(),
  kept: new Map(),

  async get(number) {
    if (!this.kept.has(number)) {
      this.kept.set(number, packed(`segment-${number}`) ? unpackElement(`segment-${number}`) : this.load(number));
      if (this.kept.size > 6) this.kept.delete(this.kept.keys().next().value);
    }
    try {
      return await this.kept.get(number);
    } catch (error) {
      this.kept.delete(number);
      throw error;
    }
  },

  load(number) {
    if (this.about.live) return fetchPacked(`sample/${number}`).then((detail) => [detail]);
    const name = `${this.about.directory}/${String(number).padStart(6, "0")}.js`;
    return new Promise((resolve, reject) => {
      const script = make("script", { src: name.split("/").map(encodeURIComponent).join("/") });
      script.onload = () => {
        const [token, packed] = this.arrived.get(number) || [];
        this.arrived.delete(number);
        script.remove();
        if (token === this.about.token) resolve(unpack(packed));
        else reject(new Error(`${name} belongs to another report; write the report again, or copy its directory with it`));
      };
      script.onerror = () => {
        script.remove();
        reject(new Error(`${name} is not beside this file; transcripts stand there: copy the directory along with it`));
      };
      document.head.append(script);
    });
  },
};

window.codexPoolSegment = (token, number, packed) => Segments.arrived.set(number, [token, packed]);

const format = {
  currency: null,
  number: (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en")),
  score(value) {
    if (value === null || value === undefined) return "–";
    return Number.isInteger(value) ? String(value) : value.toFixed(3);
  },
  money(value) {
    if (value === null || value === undefined) return "unknown";
    // As many digits that it is not shown as nothing.
    const size = Math.abs(value);
    const figure = value.toFixed(size >= 0.995 || value === 0 ? 2 : Math.min(100, Math.max(4, 1 - Math.floor(Math.log10(size)))));
    return format.currency === "USD" ? `$${figure}` : format.currency ? `${figure} ${format.currency}` : figure;
  },
  duration(ms) {
    if (ms === null || ms === undefined) return "–";
    if (ms < 999.5) return `${Math.round(ms)} ms`;
    if (ms < 59950) return `${(ms / 1000).toFixed(1)} s`;
    const s = Math.round(ms / 1000);
    if (s < 3600) return s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${s / 60} min`;
    const minutes = Math.round(s / 60);
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  },
  moment: (s) => new Date(s * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC"),
  signed: (value, say) => (value > 0 ? "+" : value < 0 ? "−" : "±") + say(Math.abs(value)),
};

const KNOWN_STATUSES = ["completed", "failed", "interrupted", "lost", "stalled", "limit", "running"];
const statusClass = (status) => (KNOWN_STATUSES.includes(status) ? status : "none");

function statusMark(status, limit) {
  return make("span", { class: `status t-${statusClass(status)}` }, limit ? `${status}: ${limit}` : status);
}

// A score of the table, [scorer, value, passed, failed], as a sign and, where it is not just 0 or 1, its value.
function scoreMark(score, withWord) {
  if (!score) return make("span", { class: "muted" }, "–");
  const [, value, passed, failed] = score;
  if (failed || value === null) return make("span", { class: "mark-error", title: "the scorer failed" }, "! not scored");
  const plain = value === 0 || value === 1;
  if (passed === null) return make("span", {}, format.score(value));
  const word = withWord || plain ? (passed ? " passed" : " failed") : "";
  const figure = plain ? "" : ` ${format.score(value)}`;
  return make("span", { class: passed ? "good" : "bad" }, (passed ? "✓" : "✗") + word + figure);
}

function theme() {
  const order = ["system", "light", "dark"];
  const button = byId("theme");
  const show = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.textContent = `Colours: ${name}`;
  };
  let current = "system";
  try {
    current = order.includes(localStorage.codexPoolTheme) ? localStorage.codexPoolTheme : "system";
  } catch { /* a page from the disk may have no storage */ }
  show(current);
  button.addEventListener("click", () => {
    current = order[(order.indexOf(current) + 1) % order.length];
    show(current);
    try {
      localStorage.codexPoolTheme = current;
    } catch { /* as above */ }
  });
}
