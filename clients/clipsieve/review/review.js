// What the server says, the grid and one large picture.

const state = {
  facts: null, queue: "all", sort: "highest", column: "", kind: "label", rows: new Map(), blurAll: false, turned: new Set(),
};
const isOpen = id => byId(id).open;

async function ask(path, body) {
  const change = body !== undefined;
  const options = change ? {method: "POST", headers: {"X-Clipsieve-Review": "1"}, body: body instanceof Blob ? body : JSON.stringify(body)} : {};
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The page's server has ended: start `clipsieve review` again. What was answered is kept.");
  }
  const content = await answer.json().catch(() => ({detail: `The page's server failed (HTTP ${answer.status}); the terminal it was started in says why.`}));
  if (!answer.ok) throw Object.assign(new Error(content.detail), {status: answer.status});
  return content;
}

// Says something for a while, above whatever is open.
function toast(text) {
  const place = isOpen("large") ? byId("large-toast") : isOpen("two") ? byId("two-toast") : byId("shown");
  place.textContent = text;
  place.hidden = false;
  clearTimeout(place.timer);
  if (place.id !== "shown") place.timer = setTimeout(() => { place.hidden = true; }, 5000);
}

function showProblem(error) {
  if (isOpen("large") || isOpen("two")) toast(error.message);
  byId("problem").textContent = error.message;
  byId("problem").hidden = false;
}

// Changes are made one after another: each is answered before the next key acts.
let lastChange = Promise.resolve();
function change(action) {
  lastChange = lastChange.then(action).then(() => { byId("problem").hidden = true; }, showProblem);
  return lastChange;
}

// Order

let order = 0;
async function readOrder(fromTheFirst) {
  const mine = ++order;
  const query = new URLSearchParams({queue: state.queue, sort: state.sort, column: state.column, kind: state.kind});
  let answer;
  try { answer = await ask(`/order?${query}`); } catch (error) { showProblem(error); return; }
  if (mine !== order) return;
  state.note = answer.note;
  byId("shown").textContent = [`${integer(answer.ids.length)} ${answer.ids.length === 1 ? "picture" : "pictures"}.`, answer.note].filter(Boolean).join(" ");
  gallery.show(answer.ids, fromTheFirst);
  if (large.isOpen) large.open(gallery.active ?? large.row);
}

// What a card shows comes in pages of rows, when a card is first seen.
const wanted = new Set();
function want(id) {
  if (!wanted.size) setTimeout(readRows, 0);
  wanted.add(id);
}

async function readRows() {
  const ids = [...wanted].slice(0, 300);
  wanted.clear();
  try {
    takeRows(await ask(`/rows?${new URLSearchParams({ids: ids.join(","), column: state.column})}`));
  } catch (error) { showProblem(error); }
}

function takeRows(rows) {
  for (const row of rows) { state.rows.set(row.id, row); rewrite(row.id); }
}

function forgetRows() {
  state.rows.clear();
  gallery.rewrite();
  large.rewrite();
}

// Cards

const rowOf = id => state.rows.get(id);
const nameOf = id => rowOf(id) ? shortName(rowOf(id).name) : `picture ${id + 1}`;
const classNames = () => state.facts.classNames;
const answerOf = row => state.kind === "grade" ? row.grade : row.label;
const isTwoClasses = () => state.kind === "label" && classNames().length === 2;
const knownOf = row => row.known !== null && (state.kind === "grade") === state.facts.graded ? row.known : null;
const markOf = row => isTwoClasses() && answerOf(row) !== null ? classNames().indexOf(answerOf(row)) : -1;

function makeCard(id) {
  const image = element("img", {decoding: "async", draggable: false, loading: "lazy"});
  image.addEventListener("error", () => image.replaceWith(element("span", {className: "missing", textContent: rowOf(id)?.gone ? "no longer there" : "cannot be shown"})));
  image.src = `/thumbnail/${id}`;
  return element("article", {className: "card", "data-row": id, tabIndex: -1},
    element("button", {type: "button", className: "picture"}, image),
    element("div", {className: "facts"}, element("span", {className: "score"}), element("bdi", {className: "band"})),
    element("bdi", {className: "name"}),
    element("div", {className: "marks"}));
}

function writeCard(id, card) {
  const row = rowOf(id), blurred = isBlurred(id), name = nameOf(id);
  card.classList.toggle("blurred", blurred);
  const image = card.querySelector("img");
  if (image) image.alt = `${blurred ? "Blurred picture" : "Picture"} ${name}`;
  card.querySelector(".picture").setAttribute("aria-label", `Show ${name} large`);
  card.querySelector(".name").textContent = row ? name : "";
  if (!row) { want(id); return; }
  card.querySelector(".name").title = row.name;
  writeFacts(row, card);
  writeAnswers(row, card.querySelector(".marks"));
  const answer = answerOf(row), score = row.score === null ? "no score" : digits(row.score);
  card.setAttribute("aria-label", `${name}, ${score}${row.band && `, ${row.band}`}${answer === null ? "" : `, answered ${answer}`}`);
}

function writeFacts(row, place) {
  if (markOf(row) < 0) delete place.dataset.mark; else place.dataset.mark = markOf(row);
  place.querySelector(".score").textContent = row.score === null ? "–" : digits(row.score);
  place.querySelector(".band").textContent = row.band || (knownOf(row) === null ? "" : `was ${knownOf(row)}`);
}

function writeAnswers(row, place) {
  const answer = answerOf(row);
  if (!isTwoClasses()) {
    const given = answer === null ? "not answered" : state.kind === "grade" ? ` of 10` : "";
    place.replaceChildren(element("span", {className: "given"}, answer === null ? "" : element("b", {textContent: answer}), given));
    return;
  }
  if (place.childElementCount !== 2) {
    place.replaceChildren(...[1, 0].map(mark => element("button", {type: "button", "data-mark": mark, tabIndex: place.closest(".card").tabIndex})));
  }
  for (const button of place.children) {
    const name = classNames()[Number(button.dataset.mark)];
    button.textContent = name;
    button.setAttribute("aria-label", `Label ${nameOf(row.id)} ${name}`);
    button.setAttribute("aria-pressed", String(answer === name));
  }
}

const gallery = new Gallery(byId("grid"), {make: makeCard, write: writeCard, below: 92, bar: byId("toolbar")});
const large = new LargeView(gallery, {
  sources: id => [`/thumbnail/${id}`, `/picture/${id}`],
  missing: () => "no longer there",
  write: writeLarge,
  failed: skipMissing,
});

function rewrite(id) {
  gallery.rewrite(id);
  if (large.row === id) large.rewrite();
}

// One

// Keys of the answers: 1 and 0 of two classes, else their numbers; of ten grades the last is 0.
function choices() {
  if (state.kind === "grade") return Array.from({length: 10}, (_, place) => ({key: String((place + 1) % 10), value: String(place + 1), text: String(place + 1)}));
  if (isTwoClasses()) return [1, 0].map(mark => ({key: String(mark), value: classNames()[mark], text: classNames()[mark], mark}));
  return classNames().map((name, place) => ({key: String(place + 1), value: name, text: name}));
}

function writeChoices() {
  byId("large-answers").className = `marks ${state.kind}s`;
  byId("large-answers").replaceChildren(...choices().map(({key, value, text, mark}) => {
    const button = element("button", {type: "button", "data-value": value, "aria-keyshortcuts": key}, text);
    if (state.kind === "label") button.append(element("kbd", {textContent: key, "aria-hidden": "true"}));
    if (mark !== undefined) button.dataset.mark = mark;
    return button;
  }));
  byId("keys-answers").replaceChildren(...choices().flatMap(({key}) => [element("kbd", {textContent: key}), " "]));
}

function writeLarge(id, dialog) {
  const row = rowOf(id), blurred = isBlurred(id), name = nameOf(id);
  dialog.classList.toggle("blurred", blurred);
  const image = dialog.querySelector("img");
  if (image) image.alt = `${blurred ? "Blurred picture" : "Picture"} ${name}`;
  byId("large-blur").textContent = blurred ? "Show" : "Blur";
  byId("large-blur").setAttribute("aria-label", `${blurred ? "Show" : "Blur"} ${name}`);
  if (!row) { want(id); return; }
  dialog.querySelector(".name").textContent = name;
  dialog.querySelector(".name").title = row.name;
  writeFacts(row, dialog);
  for (const button of byId("large-answers").children) {
    button.setAttribute("aria-pressed", String(answerOf(row) === button.dataset.value));
    button.setAttribute("aria-label", `${state.kind === "grade" ? "Grade" : "Label"} ${button.dataset.value}`);
  }
  preload();
}

// The next two pictures are made while this one is looked at.
const preloaded = new Map();
function preload() {
  for (const id of gallery.rows.slice(gallery.place + 1, gallery.place + 3)) {
    if (preloaded.has(id)) continue;
    const image = new Image();
    image.src = `/picture/${id}`;
    preloaded.set(id, image);
    if (preloaded.size > 8) preloaded.delete(preloaded.keys().next().value);
    if (!rowOf(id)) want(id);
  }
}

function openOne(id) {
  if (id === null || id === undefined) { toast(state.note || "No picture is in this queue."); return; }
  large.open(id);
  writeWays();
}

async function skipMissing(id) {
  let reason = "cannot be shown";
  try { await ask(`/picture/${id}`); } catch (error) { reason = error.message; }
  toast(`${nameOf(id)}: ${reason} Skipped.`);
  if (large.row === id) goOn();
}

function goOn() {
  if (!large.isOpen) { gallery.goTo(gallery.place + 1); return; }
  if (gallery.place < gallery.rows.length - 1) large.move(1);
  else toast("This was the last picture of the queue.");
}

// Answers

function giveAnswer(id, value, andGoOn) {
  return change(async () => {
    const target = id ?? (large.isOpen ? large.row : gallery.active);
    try {
      takeRows([await ask(`/answer?${new URLSearchParams({column: state.column})}`, {id: target, kind: state.kind, value})]);
    } catch (error) {
      if (error.status !== 410) throw error;
      toast(`${error.message} Skipped.`);
      if (rowOf(target)) { rowOf(target).gone = true; rewrite(target); }
    }
    if (andGoOn) goOn();
    readState();
  });
}

const undo = () => change(async () => {
  const {undone, rows} = await ask(`/undo?${new URLSearchParams({column: state.column})}`, {});
  if (undone === null) { toast("Nothing is left to undo on this page."); return; }
  takeRows(rows);
  readState();
  if (undone.kind === "pair") { if (isOpen("two")) showPair(rows); return; }
  const place = gallery.rows.indexOf(undone.ids[0]);
  if (place >= 0 && !isOpen("two")) (large.isOpen ? large : gallery).goTo(place);
});

// Blur

const isBlurred = id => state.blurAll !== state.turned.has(id);

function turnBlur(id) {
  if (!state.turned.delete(id)) state.turned.add(id);
  rewrite(id);
}

function blurAll(blurred) {
  state.blurAll = blurred;
  state.turned.clear();
  byId("blur-all").textContent = blurred ? "Show all" : "Blur all";
  byId("blur-all").setAttribute("aria-pressed", String(blurred));
  byId("blur-all").setAttribute("aria-label", blurred ? "Show all pictures" : "Blur all pictures");
  gallery.rewrite();
  large.rewrite();
  writeTwoBlur();
}

// Ways

function writeWays() {
  for (const way of ["grid", "one", "two"]) {
    const shown = way === "one" ? isOpen("large") : way === "two" ? isOpen("two") : !isOpen("large") && !isOpen("two");
    byId(`way-${way}`).setAttribute("aria-pressed", String(shown));
  }
}

function goWay(way) {
  for (const id of ["large", "two"]) if (isOpen(id)) byId(id).close();
  if (way === "one") openOne(gallery.active);
  if (way === "two") openTwo();
  writeWays();
}
