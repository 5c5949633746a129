// What the page does: theme, copying, tables, and the interactive views. Data come from JSON in the page; all
// text goes in as text, never as HTML.
"use strict";

const make = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// --- theme and copying ---------------------------------------------------------------------------

function setUpTheme() {
  const button = document.querySelector("button.theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("bwdln-theme", root.dataset.theme); } catch (error) { /* not kept then */ }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function setUpCopying() {
  document.addEventListener("click", async event => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    let copied = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied = true;
    } catch (error) { // without permission: select it and copy as by hand
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// --- tables --------------------------------------------------------------------------------------

const PAGE = 25;
const tables = new Map(); // by element

function setUpTable(element) {
  const rows = element.tBodies[0].rows.length, long = rows > PAGE;
  const table = new DataTable(element, {
    paging: long,
    info: long,
    searching: rows > 5,
    pageLength: PAGE,
    lengthMenu: [PAGE, 100, 500, { label: "all", value: -1 }],
    order: [],
    autoWidth: false,
    layout: {
      topStart: rows > 5 ? "search" : null, topEnd: long ? "pageLength" : null,
      bottomStart: long ? "info" : null, bottomEnd: long ? "paging" : null,
    },
    language: { search: "Filter", lengthMenu: "_MENU_ a page", info: "_START_ to _END_ of _TOTAL_",
      infoFiltered: "(of _MAX_)", infoEmpty: "none", zeroRecords: "Nothing matches." },
  });
  tables.set(element, table);
  const box = element.closest(".table-box");
  const search = box.querySelector(".dt-search input");
  if (search) search.setAttribute("autocomplete", "off");
  for (const select of box.querySelectorAll(".filters select")) {
    select.addEventListener("change", () => {
      const wanted = select.value, last = Number(select.dataset.column) === table.columns().count() - 1;
      const fits = text => (last ? text.includes(wanted) : text.trim() === wanted);
      table.column(Number(select.dataset.column)).search.fixed("choice", wanted ? fits : null).draw();
    });
  }
}

// Show rows of a table by their ids: one is gone to, of several all others are left out.
function showRows(box, ids, words) {
  const element = box.querySelector("table"), table = tables.get(element);
  for (const select of box.querySelectorAll(".filters select")) {
    select.value = "";
    table.column(Number(select.dataset.column)).search.fixed("choice", null);
  }
  table.search("").search.fixed("chosen", null);
  box.querySelector(".chosen")?.remove();
  if (ids.length > 1) {
    const wanted = new Set(ids);
    table.search.fixed("chosen", (text, data, index) => wanted.has(table.row(index).node().id));
    const chip = make("button", `${words}: show all again`, { type: "button", class: "chosen" });
    chip.addEventListener("click", () => { table.search.fixed("chosen", null).draw(); chip.remove(); });
    box.prepend(chip);
  }
  table.draw();
  const row = table.row(`#${CSS.escape(ids[0])}`), order = table.rows({ search: "applied", order: "applied" });
  const place = order.indexes().toArray().indexOf(row.index()), length = table.page.len();
  if (length > 0) table.page(Math.floor(place / length)).draw("page");
  const node = row.node(), calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const other of element.querySelectorAll("tr.found")) other.classList.remove("found");
  if (ids.length === 1) node.classList.add("found");
  (ids.length === 1 ? node : box).scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
  const focus = node.querySelector("a") || node;
  if (focus === node) node.tabIndex = -1;
  focus.focus({ preventScroll: true });
}

// All rows are printed, and everything that is folded but the licenses.
function setUpPrinting() {
  const opened = [], paged = [];
  addEventListener("beforeprint", () => {
    for (const table of tables.values()) {
      paged.push([table, table.page.len(), table.page()]);
      if (table.page.len() > 0) table.page.len(-1).draw();
    }
    for (const details of document.querySelectorAll("details:not([open]):not(.licenses):not(.behind)")) {
      details.open = true;
      opened.push(details);
    }
  });
  addEventListener("afterprint", () => {
    for (const [table, length, page] of paged.splice(0)) {
      if (length > 0) table.page.len(length).page(page).draw("page");
    }
    for (const details of opened.splice(0)) details.open = false;
  });
}

// --- the interactive view: numbers ---------------------------------------------------------------

const isNumber = value => value !== null && value !== undefined && Number.isFinite(value);
const read = value => (value === "inf" ? Infinity : value);

function said(value) {
  if (value === null || value === undefined) return "no result";
  if (value === Infinity) return "∞ (diverged)";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// As in the analysis: infinity is a number, what is missing is left out.
function median(values) {
  const present = values.filter(value => value !== null).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  if (!present.length) return null;
  const middle = (present.length - 1) / 2, low = present[Math.floor(middle)], high = present[Math.ceil(middle)];
  return low === high ? low : (low + high) / 2;
}

// Rows with the same values on both axes make one point: the median of them.
function grouped(source, rows, x, color, values) {
  const groups = new Map();
  for (const row of rows) {
    const key = `${x.at[row]}|${color ? color.at[row] : ""}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()].map(members => ({
    x: x.at[members[0]] === null ? null : x.values[x.at[members[0]]],
    xs: x.at[members[0]] === null ? "unknown" : x.shown[x.at[members[0]]],
    c: color ? (color.at[members[0]] === null ? null : color.values[color.at[members[0]]]) : 0,
    cs: color ? (color.at[members[0]] === null ? "unknown" : color.shown[color.at[members[0]]]) : "",
    y: median(members.map(row => values[row])),
    rows: members,
    diverged: members.filter(row => values[row] === Infinity).length,
    missing: members.filter(row => values[row] === null).length,
  }));
}

// --- the interactive view: specifications --------------------------------------------------------

const COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C7A00", "#767676"];
const VIRIDIS = { name: "viridis", extent: [0.1, 0.88] }; // its ends are hard to see on black or on white
const BAD = "#D0342C";
const HEIGHT = 380;
const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: { labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor",
    domainOpacity: 0.35, tickOpacity: 0.35, gridColor: "currentColor", gridOpacity: 0.1, labelFontSize: 12,
    titleFontSize: 13, titleFontWeight: 500, titlePadding: 10, labelOverlap: true },
  legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: 500, gradientLength: 200, symbolLimit: 30, labelLimit: 180, titleLimit: 220 },
  text: { fill: "currentColor" },
};

const isWide = values => {
  const present = values.filter(value => isNumber(value) && value > 0);
  return present.length > 1 && present.length === values.length && Math.max(...present) > 50 * Math.min(...present);
};

function colored(axis, narrow) {
  const place = narrow ? { orient: "bottom", direction: "horizontal", columns: 3 } : { orient: "right" };
  if (!axis) return { value: COLORS[0] };
  if (axis.numeric && axis.values.length > COLORS.length) {
    const legend = narrow ? { ...place, gradientLength: 200 } : { ...place, gradientLength: 220 };
    return { field: "c", type: "quantitative", title: axis.name, legend: { ...legend, format: "~g" },
      scale: { scheme: VIRIDIS, ...scaled(isWide(axis.values)), nice: false,
        domain: [Math.min(...axis.values), Math.max(...axis.values)] } };
  }
  const many = axis.values.length > COLORS.length;
  return { field: "cs", type: "nominal", title: axis.name, sort: axis.shown, legend: place,
    scale: many ? { scheme: VIRIDIS, domain: axis.shown } : { range: COLORS.slice(0, axis.values.length), domain: axis.shown } };
}

const scaled = log => (log ? { type: "log" } : { type: "linear", zero: false });

// At the values themselves where these are few; never between whole numbers.
const ticks = axis => ({ format: "~g", tickCount: 10,
  ...(axis.values.length <= 16 ? { values: axis.values } : {}),
  ...(axis.values.every(Number.isInteger) ? { tickMinStep: 1 } : {}) });

const across = (axis, log) => axis.numeric
  ? { field: "x", type: "quantitative", title: axis.name, scale: { ...scaled(log), padding: 14, nice: false },
      axis: ticks(axis) }
  : { field: "xs", type: "ordinal", title: axis.name, sort: axis.shown, axis: { labelAngle: axis.values.length > 6 ? -45 : 0 } };

const upwards = (label, log) => ({ field: "y", type: "quantitative", title: label,
  scale: { ...scaled(log), padding: 16 },
  axis: { format: log ? "~e" : "~g", tickCount: 7 } });

// Lines and points by one option, what cannot be placed in strips at the ends: ∞ above, nothing below.
function curves(groups, choice) {
  const y = upwards(choice.quantity.label, choice.ylog), x = across(choice.x, choice.xlog);
  const color = colored(choice.color, choice.narrow);
  const placed = groups.filter(group => group.x !== null);
  const drawn = placed.filter(group => isNumber(group.y) && (!choice.ylog || group.y > 0));
  const below = placed.filter(group => isNumber(group.y) && choice.ylog && group.y <= 0);
  const connected = choice.connected && (!choice.color || choice.color.values.length * 1.5 < groups.length);
  const point = { type: "point", filled: true, size: groups.length > 400 ? 26 : 56, opacity: 0.9, cursor: "pointer" };
  const strip = (values, place, shape, more) => ({ data: { values }, mark: { ...point, size: 70, shape, ...more },
    encoding: { x, y: { value: place } } });
  return {
    height: HEIGHT,
    layer: [
      ...(connected ? [{ data: { values: drawn }, mark: { type: "line", strokeWidth: 1.6, opacity: 0.75 },
        encoding: { x, y, color, detail: { field: "cs" }, order: choice.x.numeric ? { field: "x", type: "quantitative" } : undefined } }] : []),
      { data: { values: drawn }, mark: point, encoding: { x, y, color } },
      strip(placed.filter(group => group.y === Infinity), 4, "triangle-up", { color: BAD }),
      strip(placed.filter(group => group.y === null), HEIGHT - 4, "square", { filled: false, stroke: "currentColor", fill: "transparent" }),
      strip(below, HEIGHT - 4, "triangle-down", { filled: false, stroke: "currentColor", fill: "transparent" }),
    ],
  };
}

// A cell for each pair of values; infinite and missing ones are marked as such.
function heatMap(groups, choice) {
  const x = { field: "xs", type: "ordinal", title: choice.x.name, sort: choice.x.shown, axis: { labelAngle: choice.x.values.length > 8 ? -45 : 0 } };
  const y = { field: "cs", type: "ordinal", title: choice.color.name, sort: choice.color.numeric ? [...choice.color.shown].reverse() : choice.color.shown };
  const there = groups.filter(group => isNumber(group.y) && (!choice.ylog || group.y > 0));
  const zero = groups.filter(group => isNumber(group.y) && choice.ylog && group.y <= 0);
  const infinite = groups.filter(group => group.y === Infinity), missing = groups.filter(group => group.y === null);
  const legend = choice.narrow ? { orient: "bottom", direction: "horizontal" } : { orient: "right" };
  const color = { field: "y", type: "quantitative", title: choice.quantity.label,
    legend: { ...legend, format: choice.ylog ? "~e" : "~g" },
    scale: { ...scaled(choice.ylog), scheme: "cividis", nice: false } };
  const cell = { type: "rect", cursor: "pointer" }, signs = { type: "text", fontSize: 13, cursor: "pointer" };
  return {
    height: Math.max(HEIGHT, 16 * choice.color.values.length),
    layer: [
      { data: { values: there }, mark: cell, encoding: { x, y, color } },
      { data: { values: infinite }, mark: { ...cell, color: BAD }, encoding: { x, y } },
      { data: { values: infinite }, mark: { ...signs, text: "∞", fill: "#ffffff" }, encoding: { x, y } },
      { data: { values: [...missing, ...zero] }, mark: { ...cell, fill: "transparent", stroke: "currentColor", strokeOpacity: 0.4, strokeDash: [3, 3] }, encoding: { x, y } },
      { data: { values: missing }, mark: { ...signs, text: "–", fill: "currentColor" }, encoding: { x, y } },
      { data: { values: zero }, mark: { ...signs, text: "≤0", fontSize: 11, fill: "currentColor" }, encoding: { x, y } },
    ],
  };
}

// A curve for each row on the way; one that diverges ends in a mark at the top.
function onTheWay(source, rows, choice) {
  const label = source.curves.clock === "time" ? "flow time t" : "step";
  const of = source.curves.values[choice.quantity.name], points = [], ends = [];
  let smallest = Infinity;
  for (const row of rows) {
    if (!of[row]) continue;
    const along = source.curves.along[source.curves.which[row]], color = choice.color, at = color ? color.at[row] : 0;
    const cs = color ? (at === null ? "unknown" : color.shown[at]) : "", c = color && at !== null ? color.values[at] : 0;
    for (let index = 0; index < along.length; index++) {
      const x = along[index], y = read(of[row][index]);
      if (x > 0 && x < smallest) smallest = x;
      if (y === Infinity) { ends.push({ x, cs, rows: [row] }); break; }
      if (isNumber(y) && (!choice.ylog || y > 0)) points.push({ x, y, c, cs, r: row, rows: [row] });
    }
  }
  const scale = choice.xlog ? { type: "symlog", constant: smallest, nice: false } : { zero: false, nice: false };
  const x = { field: "x", type: "quantitative", title: label, scale, axis: { format: "~g", tickCount: 8 } };
  if (choice.xlog && isNumber(smallest)) x.axis.values = [0, ...decades(smallest, Math.max(...points.map(p => p.x).slice(-1), ...source.curves.along.map(list => list[list.length - 1])))];
  const y = upwards(choice.quantity.label, choice.ylog), color = colored(choice.color, choice.narrow);
  const many = rows.length > 40;
  return {
    height: HEIGHT,
    layer: [
      { data: { values: points }, mark: { type: "line", strokeWidth: many ? 0.9 : 1.6, opacity: many ? 0.55 : 0.85, cursor: "pointer" },
        encoding: { x, y, color, detail: { field: "r" } } },
      { data: { values: ends }, mark: { type: "point", filled: true, shape: "triangle-up", size: 70, color: BAD, cursor: "pointer" },
        encoding: { x, y: { value: 4 } } },
    ],
  };
}

function decades(low, high) {
  const found = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; power++) found.push(10 ** power);
  const apart = Math.ceil(found.length / 7);
  return found.filter((value, index) => index % apart === 0);
}

// --- the interactive view: the parts together ----------------------------------------------------

class Explorer {
  constructor(element) {
    this.element = element;
    this.source = JSON.parse(document.getElementById(element.dataset.source).textContent);
    this.source.quantities.forEach(each => { each.values = each.values.map(read); });
    this.form = element.querySelector("form");
    this.chart = element.querySelector(".chart");
    this.box = element.closest("article").querySelector(".table-box:has(.sortable tr[id])");
    this.tip = document.body.appendChild(make("div", null, { class: "tip", hidden: "" }));
    this.form.addEventListener("submit", event => event.preventDefault());
    this.form.addEventListener("change", event => this.changed(event.target));
    element.querySelector("details.behind").addEventListener("toggle", () => this.list());
    new ResizeObserver(() => this.resized()).observe(this.chart);
    this.changed(this.form.elements.x);
  }

  axis(value) { return value === "" || value === "progress" ? null : this.source.axes[Number(value)]; }

  // What was changed may change what else makes sense.
  changed(control) {
    const { x, color, quantity, yscale, xscale, view } = this.form.elements;
    const progress = x.value === "progress", kept = this.source.curves.values;
    if (control === x || control === color) {
      if (x.value === color.value) {
        const other = [...color.options].map(option => option.value).find(value => value !== "" && value !== x.value);
        if (control === x) color.value = view?.value === "map" ? other : "";
        else x.value = other ?? "progress";
      }
    }
    if (view) {
      view.options[1].disabled = progress;
      if (progress) view.value = "curves";
      if (view.value === "map" && color.value === "") {
        color.value = [...color.options].map(option => option.value).find(value => value !== "" && value !== x.value);
      }
    }
    for (const option of quantity.options) option.disabled = progress && !(option.value in kept);
    if (quantity.selectedOptions[0].disabled) quantity.value = Object.keys(kept)[0];
    if (control === quantity || control === x) {
      const chosen = this.source.quantities.find(each => each.name === quantity.value);
      const falling = progress && chosen.name.endsWith("gap");
      yscale.value = chosen.log || falling ? "log" : "linear";
    }
    const horizontal = this.axis(x.value), map = view?.value === "map";
    const positive = progress || (horizontal.numeric && horizontal.values[0] > 0);
    xscale.disabled = !positive || map;
    if (xscale.disabled) xscale.value = "linear";
    else if (control === x) {
      xscale.value = (progress ? this.source.curves.logarithmic : isWide(horizontal.values)) ? "log" : "linear";
    }
    for (const filter of this.form.querySelectorAll(".filter")) {
      const used = filter.dataset.axis === x.value || filter.dataset.axis === color.value;
      const all = filter.querySelector("option");
      const count = filter.querySelectorAll("option").length - 1;
      all.textContent = used ? "on an axis" : progress ? `all ${count}` : `median over ${count}`;
      filter.classList.toggle("used", used);
      filter.querySelector("select").disabled = used;
      if (used) filter.querySelector("select").value = "";
    }
    this.draw();
  }

  choice() {
    const fields = this.form.elements;
    return {
      progress: fields.x.value === "progress",
      map: fields.view?.value === "map",
      x: this.axis(fields.x.value),
      color: this.axis(fields.color.value),
      quantity: this.source.quantities.find(each => each.name === fields.quantity.value),
      ylog: fields.yscale.value === "log",
      xlog: fields.xscale.value === "log",
      connected: this.source.noun !== "seed", // seeds have no order
      narrow: this.chart.clientWidth < 620,
    };
  }

  rows() {
    const wanted = [...this.form.querySelectorAll(".filter select")].map((select, index) => [this.source.axes[index], select.value]);
    return this.source.numbers.map((number, row) => row)
      .filter(row => wanted.every(([axis, value]) => value === "" || axis.at[row] === Number(value)));
  }

  async draw() {
    const choice = this.choice(), rows = this.rows(), turn = this.turn = (this.turn ?? 0) + 1;
    this.shown = choice.progress ? [] : grouped(this.source, rows, choice.x, choice.color, choice.quantity.values);
    const inside = choice.progress ? onTheWay(this.source, rows, choice) : choice.map ? heatMap(this.shown, choice) : curves(this.shown, choice);
    this.width = this.chart.clientWidth;
    const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit-x", contains: "padding" },
      config: CONFIG, ...inside, layer: inside.layer.filter(each => each.data.values.length), description: this.about(choice, rows) };
    const place = make("div", null, { class: "drawn" });
    this.chart.classList.add("busy");
    const stage = this.chart.appendChild(place);
    const result = await vegaEmbed(stage, spec, { actions: false, ast: true, renderer: "svg", defaultStyle: false, tooltip: false, loader: { load: () => Promise.reject(new Error("no requests")) } });
    if (turn !== this.turn) { result.finalize(); stage.remove(); return; }
    for (const old of this.chart.querySelectorAll(".drawn")) if (old !== stage) old.remove();
    this.result?.finalize();
    this.result = result;
    this.listen(result.view, choice);
    this.chart.classList.remove("busy");
    this.element.querySelector(".about").textContent = spec.description;
    this.notes(choice, rows);
    this.list();
    this.element.dataset.drawn = String(turn);
  }

  resized() {
    clearTimeout(this.waiting);
    if (this.width && Math.abs(this.chart.clientWidth - this.width) > 2) this.waiting = setTimeout(() => this.draw(), 150);
  }

  about(choice, rows) {
    const noun = rows.length === 1 ? this.source.noun : `${this.source.noun}s`;
    const by = choice.color ? `, ${choice.map ? "and" : "colored by"} ${choice.color.name}` : "";
    const what = choice.progress ? `${choice.quantity.label} on the way` : `${choice.quantity.label} at the end against ${choice.x.name}`;
    const over = choice.progress ? "" : this.shown.some(group => group.rows.length > 1) ? `; medians over ${rows.length.toLocaleString("en")} ${noun}` : `; ${rows.length.toLocaleString("en")} ${noun}`;
    const meaning = choice.quantity.meaning ? ` ${choice.quantity.label}: ${choice.quantity.meaning}.` : "";
    return `${what[0].toUpperCase()}${what.slice(1)}${by}${choice.progress ? `; ${rows.length.toLocaleString("en")} ${noun}` : over}.${meaning}`;
  }

  // How many rows cannot be placed on the axes, each a way to them.
  notes(choice, rows) {
    const values = choice.quantity.values, line = this.element.querySelector(".legend");
    const of = this.source.curves.values[choice.quantity.name];
    const lost = rows.filter(row => values[row] === Infinity), missing = rows.filter(row => values[row] === null);
    const unplaced = choice.progress ? [] : rows.filter(row => choice.x.at[row] === null);
    const below = choice.ylog && !choice.progress ? rows.filter(row => isNumber(values[row]) && values[row] <= 0) : [];
    const bare = choice.progress ? rows.filter(row => !of[row] && values[row] !== Infinity && values[row] !== null) : [];
    line.replaceChildren();
    const add = (sign, found, words) => {
      if (!found.length) return;
      const button = make("button", `${sign} ${found.length.toLocaleString("en")} ${words}`, { type: "button" });
      button.addEventListener("click", () => this.go(found, words));
      line.append(button, " ");
    };
    add("▲", lost, choice.progress && !lost.every(row => of[row]) ? "diverged, without a curve" : "diverged (∞)");
    add("□", missing, "without a result");
    add("▽", below, "not above 0, outside of a log axis");
    add("–", bare, "without a curve");
    add("?", unplaced, "with unknown options");
  }

  id(row) { return `${this.element.dataset.source.replace(/-data$/, "")}-${this.source.noun}-${this.source.numbers[row]}`; }

  go(rows, words) {
    this.tip.hidden = true;
    showRows(this.box, rows.map(row => this.id(row)), `${rows.length.toLocaleString("en")} ${this.source.noun}s ${words ?? "of this point"}`);
  }

  listen(view, choice) {
    view.addEventListener("click", (event, item) => { if (item?.datum?.rows) this.go(item.datum.rows); });
    view.addEventListener("pointermove", (event, item) => this.hover(event, item, choice));
    view.addEventListener("pointerout", () => { this.tip.hidden = true; });
    this.chart.onpointerleave = () => { this.tip.hidden = true; };
  }

  hover(event, item, choice) {
    const rows = item?.datum?.rows;
    if (!rows) { this.tip.hidden = true; return; }
    this.tip.replaceChildren(...this.lines(item.datum, choice).map(([name, value]) => {
      const line = make("div");
      line.append(make("span", name), make("strong", value));
      return line;
    }));
    this.tip.hidden = false;
    const { width, height } = this.tip.getBoundingClientRect(), edge = document.documentElement.clientWidth - 8;
    const above = event.clientY - height - 14;
    this.tip.style.left = `${Math.max(8, Math.min(edge - width, event.clientX + 14))}px`;
    this.tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
  }

  lines(datum, choice) {
    const { source } = this, rows = datum.rows, one = rows.length === 1, row = rows[0];
    const values = choice.quantity.values, lost = rows.filter(each => values[each] === Infinity).length;
    const missing = rows.filter(each => values[each] === null).length;
    const value = choice.progress ? values[row] : datum.y;
    const options = source.axes.filter(axis => one || axis === choice.x || axis === choice.color);
    return [
      [one ? source.noun : `${source.noun}s`, one ? String(source.numbers[row]) : String(rows.length)],
      ...options.filter(axis => axis.name !== source.noun).map(axis => [axis.name, axis.at[row] === null ? "unknown" : axis.shown[axis.at[row]]]),
      [`${choice.quantity.label}${one ? "" : ", median"}`, said(value)],
      ...(one ? [["outcome", source.outcomes[row].slice(0, 160)]] : []),
      ...(!one && lost ? [["diverged", `${lost} of ${rows.length}`]] : []),
      ...(!one && missing ? [["without a result", `${missing} of ${rows.length}`]] : []),
    ];
  }

  // The same as a table, for those who cannot see or point.
  list() {
    const details = this.element.querySelector("details.behind"), place = details.querySelector(".values");
    const choice = this.choice();
    details.hidden = choice.progress;
    if (choice.progress || !details.open) return;
    const table = make("table"), head = make("tr"), body = make("tbody");
    const names = [choice.x.name, ...(choice.color ? [choice.color.name] : []), choice.quantity.label, `${this.source.noun}s`];
    names.forEach(name => head.append(make("th", name, { scope: "col" })));
    const ordered = [...this.shown].sort((a, b) => choice.x.shown.indexOf(a.xs) - choice.x.shown.indexOf(b.xs));
    for (const group of ordered) {
      const line = make("tr"), button = make("button", group.rows.length === 1 ? String(this.source.numbers[group.rows[0]]) : `${group.rows.length}`, { type: "button" });
      button.addEventListener("click", () => this.go(group.rows));
      line.append(make("td", group.xs), ...(choice.color ? [make("td", group.cs)] : []), make("td", said(group.y)));
      line.append(make("td"));
      line.lastChild.append(button);
      body.append(line);
    }
    table.append(make("thead"), body);
    table.tHead.append(head);
    place.replaceChildren(table);
  }
}

// --- begin ---------------------------------------------------------------------------------------

setUpTheme();
setUpCopying();
document.querySelectorAll("table.sortable").forEach(setUpTable);
setUpPrinting();
// Views come one after the other, so that the page answers in between; the first at once.
const waiting = [...document.querySelectorAll(".explore")];
function next() {
  const element = waiting.shift();
  if (!element) return;
  element.explorer = new Explorer(element);
  setTimeout(next, 50);
}
next();
document.documentElement.classList.add("ready");
