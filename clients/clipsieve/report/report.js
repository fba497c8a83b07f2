// The data: facts about the table, and the pictures in blocks that are parsed when first needed.

const facts = JSON.parse(document.getElementById("facts").textContent);
const blocks = [...document.querySelectorAll("script.pictures")];
const blockSize = blocks.length ? JSON.parse(blocks[0].textContent).length : 1;
const parsedBlocks = new Map();
const lowerNames = facts.names.map(name => name.toLowerCase());

function pictureOf(row) {
  const block = Math.floor(row / blockSize);
  if (!parsedBlocks.has(block)) parsedBlocks.set(block, JSON.parse(blocks[block].textContent));
  return parsedBlocks.get(block)[row % blockSize];
}

function floatsFrom(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({length: bytes.length / 4}, (_, place) => view.getFloat32(place * 4, true));
}

for (const column of facts.columns) column.sorted = floatsFrom(column.sorted);

// How many of all the table's scores lie below a value.
function countBelow(column, value) {
  const limit = Math.fround(value);
  let low = 0, high = column.sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (column.sorted[middle] < limit) low = middle + 1; else high = middle;
  }
  return low;
}

// What is chosen now.

const state = {
  column: facts.columns[facts.first], filter: "all", search: "", sort: "highest", code: null, errorsShown: 200,
  blurAll: facts.blurred, turned: new Set(),
};
const marks = new Marks();
const histogram = byId("histogram");
const share = (part, whole) => whole ? `${(100 * part / whole).toFixed(part / whole < 0.1 ? 2 : 1)} %` : "–";

// Summary

function writeSummary() {
  const table = byId("table");
  table.textContent = facts.table;
  document.title = `${facts.table} – clipsieve report`;
  const item = (...children) => byId("summary").appendChild(element("li", {}, ...children));
  const strong = text => element("b", {textContent: text});
  item(strong(integer(facts.rows)), facts.rows === 1 ? " row" : " rows");
  item(strong(integer(facts.scored)), " scored");
  const failed = facts.errorCodes.reduce((sum, [, count]) => sum + count, 0);
  const codes = facts.errorCodes.map(([code, count]) => `${code} ${integer(count)}`).join(", ");
  item(strong(integer(failed)), failed === 1 ? " error" : " errors", codes && ` (${codes})`);
  const models = facts.models.map(([model, count]) => facts.models.length > 1 ? `${model} (${integer(count)})` : model);
  if (facts.moreModels) models.push(`${facts.moreModels} more`);
  if (facts.passedOver) item(facts.passedOver);
  item("model ", strong(models.join(", ") || "unknown")).className = "wide";
  item(`table written ${facts.written.replace("T", " ").replace("+00:00", " UTC")}`).className = "wide";
  byId("tab-pictures").textContent = `Pictures ${integer(facts.names.length)}`;
  byId("tab-errors").textContent = `Errors ${integer(failed)}`;
}

// Which score, which pictures, in which order

function chooseColumn(column) {
  state.column = column;
  state.filter = "all";
  for (const id of ["threshold", "threshold-number"]) Object.assign(byId(id), {min: column.low, max: column.high});
  [byId("negative").value, byId("positive").value] = column.classNames;
  marks.open(`clipsieve-report ${facts.id} ${column.name}`);
  writeFilters();
  writeLimits();
  setThreshold(column.threshold);
  drawHistogram();
  writeMarked();
}

const isAbove = row => Math.fround(state.column.scores[row]) >= Math.fround(state.column.threshold);
const markOf = row => marks.of(facts.names[row]);
const bandOf = row => state.column.bandNames[state.column.bands[row]] ?? "";
const filters = {
  all: () => true,
  above: isAbove,
  below: row => !isAbove(row),
  marked: row => markOf(row) !== undefined,
  unmarked: row => markOf(row) === undefined,
};

function writeFilters() {
  const choice = (value, label) => element("button", {type: "button", textContent: label, "aria-pressed": String(state.filter === value), "data-filter": value});
  byId("filters").replaceChildren(
    choice("all", "all"), choice("above", "at or above"), choice("below", "below"),
    ...state.column.bandNames.map((name, band) => choice(`band ${band}`, name)),
    choice("marked", "marked"), choice("unmarked", "not marked"));
}

// The head's own thresholds, where the run that wrote the table said them.
function writeLimits() {
  byId("limits").replaceChildren(...state.column.thresholds.map(([value, point]) => {
    const button = element("button", {type: "button", "aria-label": `Threshold ${digits(value)} ${point}`.trim()}, digits(value), element("span", {className: "wide quiet", textContent: point && ` ${point}`}));
    button.addEventListener("click", () => setThreshold(value));
    return button;
  }));
}

let viewScheduled = false;
function scheduleView() {
  if (viewScheduled) return;
  viewScheduled = true;
  requestAnimationFrame(() => { viewScheduled = false; updateView(); });
}

// Pictures that pass, in order. A new order begins at its first picture.
function updateView(fromTheFirst = false) {
  const {column, search, sort} = state;
  const band = state.filter.startsWith("band ") ? Number(state.filter.slice(5)) : null;
  const passes = band === null ? filters[state.filter] : row => column.bands[row] === band;
  const rank = {highest: row => -column.scores[row], lowest: row => column.scores[row], near: row => Math.abs(column.scores[row] - column.threshold)}[sort];
  const rows = [];
  for (let row = 0; row < facts.names.length; row++) {
    if (column.scores[row] !== null && lowerNames[row].includes(search) && passes(row)) rows.push(row);
  }
  rows.sort((one, other) => rank(one) - rank(other) || one - other);
  writeShown(rows.length);
  gallery.show(rows, fromTheFirst);
}

function writeShown(count) {
  const order = {highest: "those with the highest", lowest: "those with the lowest", near: "those nearest the threshold by", sample: "a random sample, whatever their"}[facts.order];
  const part = facts.names.length < facts.scored ? ` The page holds ${integer(facts.names.length)} of ${integer(facts.scored)} scored rows: ${order} ${facts.orderedBy} score. Counts and histogram are of all rows.` : "";
  byId("shown").textContent = `${integer(count)} ${count === 1 ? "picture" : "pictures"}.${part}`;
}

// Cards

const thumbnailOf = picture => picture.jpeg === undefined ? picture.url : `data:image/jpeg;base64,${picture.jpeg}`;

function makeCard(row) {
  const name = facts.names[row];
  const mark = value => element("button", {type: "button", "data-mark": value});
  return element("article", {className: "card", "data-row": row, tabIndex: -1},
    element("button", {type: "button", className: "picture"}, makePicture(row)),
    element("div", {className: "facts"}, element("span", {className: "score"}), element("bdi", {className: "band"})),
    element("bdi", {className: "name", textContent: shortName(name), title: name}),
    element("div", {className: "marks"}, mark(1), mark(0)));
}

function makePicture(row) {
  const picture = pictureOf(row);
  const absent = reason => element("span", {className: "missing", textContent: `no picture: ${reason}`});
  if (picture.missing) return absent(picture.missing);
  const image = element("img", {decoding: "async", draggable: false});
  image.addEventListener("error", () => image.replaceWith(absent("the browser cannot show the file")));
  image.src = thumbnailOf(picture);
  return image;
}

function writeCard(row, card) {
  const name = shortName(facts.names[row]);
  const band = bandOf(row), mark = markOf(row), blurred = isBlurred(row);
  card.classList.toggle("blurred", blurred);
  card.classList.toggle("at-or-above", isAbove(row));
  writeFacts(row, card);
  const image = card.querySelector("img");
  if (image) image.alt = `${blurred ? "Blurred picture" : "Picture"} ${name}`;
  const show = card.querySelector(".picture");
  show.disabled = !image;
  show.setAttribute("aria-label", `Show ${name} large`);
  const marked = mark === undefined ? "" : `, marked ${className(mark)}`;
  card.setAttribute("aria-label", `${name}, ${digits(state.column.scores[row])}${band && `, ${band}`}${marked}`);
}

function writeLarge(row, dialog) {
  const name = facts.names[row];
  const blurred = isBlurred(row);
  dialog.classList.toggle("blurred", blurred);
  dialog.querySelector(".name").textContent = shortName(name);
  dialog.querySelector(".name").title = name;
  writeFacts(row, dialog);
  const image = dialog.querySelector("img");
  if (image) image.alt = `${blurred ? "Blurred picture" : "Picture"} ${shortName(name)}`;
  byId("large-blur").textContent = blurred ? "Show" : "Blur";
  byId("large-blur").setAttribute("aria-label", `${blurred ? "Show" : "Blur"} ${shortName(name)}`);
}

// Score, band and marks of a picture, on a card or in the large view.
function writeFacts(row, place) {
  const mark = markOf(row);
  if (mark === undefined) delete place.dataset.mark; else place.dataset.mark = mark;
  place.querySelector(".score").textContent = digits(state.column.scores[row]);
  place.querySelector(".band").textContent = bandOf(row);
  for (const button of place.querySelectorAll(".marks button")) {
    const value = Number(button.dataset.mark);
    button.textContent = className(value);
    button.setAttribute("aria-label", `Mark ${shortName(facts.names[row])} as ${button.textContent}`);
    button.setAttribute("aria-pressed", String(mark === value));
  }
}

const gallery = new Gallery(byId("grid"), {make: makeCard, write: writeCard, below: 92, bar: byId("toolbar")});
const large = new LargeView(gallery, {
  sources: row => [...new Set([thumbnailOf(pictureOf(row)), pictureOf(row).url])].filter(Boolean),
  missing: row => pictureOf(row).missing,
  write: writeLarge,
});

// Who opens a picture asks for it; those that follow are as blurred as their cards.
function showLarge(row) {
  if (pictureOf(row).missing) return;
  if (isBlurred(row)) turnBlur(row);
  large.open(row);
}

function rewrite(row) {
  gallery.rewrite(row);
  large.rewrite();
}

// Blur

const isBlurred = row => state.blurAll !== state.turned.has(row);

function turnBlur(row) {
  if (!state.turned.delete(row)) state.turned.add(row);
  rewrite(row);
}

function turnAll() {
  state.blurAll = !state.blurAll;
  state.turned.clear();
  writeBlurAll();
  rewrite();
}

function writeBlurAll() {
  byId("blur-all").textContent = state.blurAll ? "Show all" : "Blur all";
  byId("blur-all").setAttribute("aria-label", state.blurAll ? "Show all pictures" : "Blur all pictures");
  byId("blur-all").setAttribute("aria-pressed", String(!state.blurAll));
}

// Marks: of this table's content and column.

const classNames = () => [byId("negative").value.trim(), byId("positive").value.trim()];
const className = mark => classNames()[mark] || ["negative", "positive"][mark];

function setMark(row, value) {
  marks.set(facts.names[row], value);
  writeMarks(facts.names[row]);
}

// Marks a picture and goes on to the next one, unless that is switched off.
function markAndGoOn(row, value) {
  setMark(row, value);
  if (value === null || !byId("advance").checked) return;
  if (large.isOpen) large.move(1); else gallery.goTo(gallery.place + 1);
}

function undoMark() {
  const name = marks.undo();
  if (name === undefined) return;
  writeMarks();
  const place = gallery.rows.findIndex(row => facts.names[row] === name);
  if (place >= 0) (large.isOpen ? large : gallery).goTo(place);
}

// Writes what the marks of one name change, or all of them.
function writeMarks(name) {
  writeMarked();
  for (const row of gallery.cards.keys()) if (name === undefined || facts.names[row] === name) gallery.rewrite(row);
  large.rewrite();
}

function writeMarked() {
  const counts = [marks.count(1), marks.count(0)];
  const summary = `${integer(marks.size)} marked: ${integer(counts[0])} as ${className(1)}, ${integer(counts[1])} as ${className(0)}`;
  const hint = classNames().every(name => name) ? "" : " – training.relabel needs both class names: see More";
  byId("marked").classList.toggle("wide", !marks.size);
  byId("marked").textContent = (marks.size ? summary : "nothing marked yet") + hint;
  byId("export").disabled = byId("clear").disabled = !marks.size;
  byId("undo").disabled = byId("large-undo").disabled = !marks.canUndo;
  byId("not-stored").hidden = marks.isKept;
}

const csvCell = value => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;

// A path from the root, so that the table of labels may lie anywhere; the key of a sample in a shard as it is.
function exportedName(name) {
  if (facts.nameColumn === "key" || /^([\\/]|[A-Za-z]:[\\/])/.test(name)) return name;
  return `${facts.folder.replace(/[\\/]$/, "")}/${name}`;
}

// `label` where both classes have names, as training.relabel reads; else `mark`, which it refuses.
function labelsCsv() {
  const names = classNames();
  const labelled = names.every(name => name);
  const rowOf = new Map(facts.names.map((name, row) => [name, row]));
  const lines = [[facts.nameColumn, "sha256", labelled ? "label" : "mark", state.column.name, "decision"]];
  for (const [name, value] of marks.values) {
    const row = rowOf.get(name);
    if (row === undefined) continue;
    const score = state.column.scores[row];
    lines.push([exportedName(name), pictureOf(row).sha256 ?? "", labelled ? names[value] : String(value), score === null ? "" : String(score), bandOf(row)]);
  }
  return lines.map(cells => cells.map(csvCell).join(",") + "\n").join("");
}

function exportLabels() {
  const url = URL.createObjectURL(new Blob([labelsCsv()], {type: "text/csv"}));
  const stem = `${facts.table.replace(/\.[^.]*$/, "")}-${state.column.title}-labels`.replace(/[^\w.-]+/g, "_");
  element("a", {href: url, download: `${stem}.csv`}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Errors

function writeErrors() {
  const found = facts.errors.filter(([code, name]) => (state.code === null || code === state.code) && name.toLowerCase().includes(state.search));
  const codes = [["all", null], ...facts.errorCodes.map(([code, count]) => [`${code} ${integer(count)}`, code])];
  byId("codes").replaceChildren(...codes.map(([label, code]) => {
    const button = element("button", {type: "button", textContent: label, "aria-pressed": String(state.code === code)});
    button.addEventListener("click", () => { state.code = code; state.errorsShown = 200; writeErrors(); });
    return button;
  }));
  byId("errors").querySelector("ol").replaceChildren(...found.slice(0, state.errorsShown).map(([code, name, message]) =>
    element("li", {}, element("code", {textContent: code}), ` ${message}`, element("bdi", {textContent: name}))));
  const all = facts.errorCodes.reduce((sum, [, count]) => sum + count, 0);
  const part = facts.errors.length < all ? ` The page holds the first ${integer(facts.errors.length)} of ${integer(all)}.` : "";
  byId("errors-shown").textContent = `${integer(found.length)} errors.${part}`;
  byId("more-errors").hidden = found.length <= state.errorsShown;
}

function chooseTab(tab) {
  for (const name of ["pictures", "errors"]) {
    byId(name).hidden = name !== tab;
    byId(`tab-${name}`).setAttribute("aria-pressed", String(name === tab));
  }
  for (const part of document.querySelectorAll(".for-pictures")) part.hidden = tab !== "pictures";
  showMore(false);
  if (tab === "errors") writeErrors(); else updateView();
}

function showMore(shown) {
  byId("more").hidden = !shown;
  byId("more-button").setAttribute("aria-expanded", String(shown));
}

// Events

on("column", "change", () => { chooseColumn(facts.columns[Number(byId("column").value)]); updateView(true); });
on("threshold", "input", () => setThreshold(byId("threshold").valueAsNumber, "range"));
on("threshold-number", "input", () => setThreshold(byId("threshold-number").valueAsNumber, "number"));
on("log", "change", drawHistogram);
on("sort", "change", () => { state.sort = byId("sort").value; updateView(true); });
on("search", "input", () => { state.search = byId("search").value.toLowerCase(); state.errorsShown = 200; scheduleView(); writeErrors(); });
on("blur-all", "click", turnAll);
on("peek", "change", () => gallery.grid.classList.toggle("peek", byId("peek").checked));
on("more-button", "click", () => showMore(byId("more").hidden));
on("undo", "click", undoMark);
on("large-undo", "click", undoMark);
on("export", "click", exportLabels);
on("clear", "click", () => {
  if (!confirm(`Remove all ${marks.size} marks of ${state.column.title}?`)) return;
  marks.clear();
  writeMarks();
  updateView();
});
on("keys-button", "click", () => byId("keys").showModal());
on("keys-close", "click", () => byId("keys").close());
on("tab-pictures", "click", () => chooseTab("pictures"));
on("tab-errors", "click", () => chooseTab("errors"));
on("more-errors", "click", () => { state.errorsShown += 200; writeErrors(); });
for (const id of ["negative", "positive"]) {
  on(id, "input", () => {
    state.column.classNames = [byId("negative").value, byId("positive").value];
    writeMarks();
  });
}
on("filters", "click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  state.filter = button.dataset.filter;
  for (const each of byId("filters").children) each.setAttribute("aria-pressed", String(each === button));
  updateView(true);
});
for (const id of ["column", "sort"]) giveFocusBack(byId(id));

function dragThreshold(event) {
  if (event.type === "pointermove" && !histogram.hasPointerCapture(event.pointerId)) return;
  if (event.type === "pointerdown") histogram.setPointerCapture(event.pointerId);
  const {low, high} = state.column;
  const part = (event.clientX - histogram.getBoundingClientRect().left - EDGE) / plot().width;
  setThreshold(Number((low + (high - low) * Math.min(1, Math.max(0, part))).toPrecision(4)));
}
on("histogram", "pointerdown", dragThreshold);
on("histogram", "pointermove", dragThreshold);

const otherMark = (row, button) => markOf(row) === Number(button.dataset.mark) ? null : Number(button.dataset.mark);

gallery.grid.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const row = gallery.rowOf(button);
  if (button.className === "picture") showLarge(row); else setMark(row, otherMark(row, button));
});
on("large", "click", event => {
  const button = event.target.closest(".marks button");
  if (button) markAndGoOn(large.row, otherMark(large.row, button));
});
on("large-picture", "click", () => { if (isBlurred(large.row)) turnBlur(large.row); });
on("large-blur", "click", () => turnBlur(large.row));

// Keys. Nothing is marked that does not have the focus or is shown large.

const actions = {
  1: row => markAndGoOn(row, 1),
  0: row => markAndGoOn(row, 0),
  Delete: row => setMark(row, null),
  b: turnBlur,
};
Object.assign(actions, {p: actions[1], n: actions[0], Backspace: actions.Delete});

const placesInLarge = {
  ArrowLeft: () => gallery.place - 1,
  ArrowRight: () => gallery.place + 1,
  ArrowUp: () => gallery.place - 1,
  ArrowDown: () => gallery.place + 1,
  Home: () => 0,
  End: () => gallery.rows.length - 1,
};

listenToKeys(key => {
  if (byId("keys").open || byId("pictures").hidden && key !== "?") return false;
  if (key === "?") byId("keys").showModal();
  else if (key === "u") undoMark();
  else if (large.isOpen && key === "Escape") large.dialog.close();
  else if (large.isOpen) return Object.hasOwn(placesInLarge, key) ? large.goTo(placesInLarge[key]()) : act(key, large.row);
  else if (gallery.placeAfter(key) !== undefined) { if (gallery.hasFocus) gallery.goTo(gallery.placeAfter(key)); else gallery.enter(); }
  else if (!gallery.hasFocus) return false;
  else if (key === "Enter") return document.activeElement.matches("button") ? false : showLarge(gallery.active);
  else return act(key, gallery.active);
});

function act(key, row) {
  if (!Object.hasOwn(actions, key)) return false;
  actions[key](row);
}

addEventListener("resize", drawHistogram);
addEventListener("storage", () => { marks.open(marks.key); writeMarks(); updateView(); });

byId("column").append(...facts.columns.map((column, place) => element("option", {value: place, textContent: column.title})));
byId("column").value = facts.first;
writeSummary();
writeBlurAll();
chooseColumn(state.column);
updateView(true);
