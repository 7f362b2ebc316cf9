"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
// The width is that of the card; legends come on top of the height.
const FIT = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
const themes = JSON.parse(document.getElementById("themes").textContent);

async function draw(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const name = dark.matches ? "dark" : "light";
  const options = { actions: false, renderer: "svg", ast: false, config: themes[name], tooltip: { theme: name } };
  const { view } = await vegaEmbed(figure.querySelector(".plot"), { ...spec, ...FIT }, options);
  const rows = () => view.data("rows").map((row) => typed(row, spec.data.format.parse));
  offer(figure, "csv", "text/csv", () => spec.data.values);
  offer(figure, "json", "application/json", () => JSON.stringify(rows()));
  figure.querySelector("details").ontoggle = () => fill(figure.querySelector(".scroll"), rows());
}

// Vega keeps what it has read as text; an empty cell is a number that is not known.
function typed(row, kinds) {
  const read = (text, kind) => (kind === "string" ? text : text === "" ? null : Number(text));
  return Object.fromEntries(Object.entries(kinds).map(([column, kind]) => [column, read(row[column], kind)]));
}

// The file is made when it is asked for: most never are.
function offer(figure, ending, type, content) {
  const link = figure.querySelector(`a.${ending}`);
  link.download = `${figure.dataset.file}.${ending}`;
  link.onclick = () => { link.href = URL.createObjectURL(new Blob([content()], { type })); };
}

function fill(place, rows) {
  if (place.firstChild || !rows.length) return;
  const columns = Object.keys(rows[0]);
  const table = place.appendChild(document.createElement("table"));
  const row = (parent, tag, cells) => {
    const line = parent.insertRow();
    for (const text of cells) line.appendChild(document.createElement(tag)).textContent = text ?? "";
  };
  row(table.createTHead(), "th", columns);
  const body = table.createTBody();
  for (const values of rows) row(body, "td", columns.map((column) => values[column]));
}

const drawAll = () => Promise.all(Array.from(document.querySelectorAll("figure"), draw));
dark.addEventListener("change", drawAll);
drawAll().then(() => { document.body.dataset.drawn = "yes"; });

const again = document.querySelector("[data-every]");
if (again) setInterval(() => { if (again.checked) location.reload(); }, 1000 * again.dataset.every);
