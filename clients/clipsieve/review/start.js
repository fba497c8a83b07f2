// Events and keys, and the beginning.

on("way-grid", "click", () => goWay("grid"));
on("way-one", "click", () => goWay("one"));
on("way-two", "click", () => goWay("two"));
for (const id of ["large", "two"]) on(id, "close", writeWays);
for (const id of ["undo", "large-undo", "two-undo"]) on(id, "click", undo);
on("queue", "change", () => { state.queue = byId("queue").value; writeSort(); readOrder(true); });
on("sort", "change", () => { state.sort = byId("sort").value; readOrder(true); });
on("column", "change", () => { state.column = byId("column").value; forgetRows(); readOrder(true); });
on("kind", "change", () => chooseKind(byId("kind").value));
for (const id of ["queue", "sort", "column", "kind"]) giveFocusBack(byId(id));
on("blur-all", "click", () => blurAll(!state.blurAll));
on("train", "click", train);
on("put-back", "click", () => change(async () => { await ask("/put-back", {}); await readState(); }));
on("forget-lost", "click", () => change(async () => { await ask("/forget-lost", {}); await readState(); }));
on("keys-button", "click", () => byId("keys").showModal());
on("keys-close", "click", () => byId("keys").close());
on("large-blur", "click", () => turnBlur(large.row));
on("large-picture", "click", () => { if (isBlurred(large.row)) turnBlur(large.row); });
on("large-skip", "click", goOn);
on("large-answers", "click", event => {
  const button = event.target.closest("button");
  if (button) giveAnswer(large.row, button.getAttribute("aria-pressed") === "true" ? null : button.dataset.value, button.getAttribute("aria-pressed") !== "true");
});
on("side-0", "click", () => choose(0));
on("side-1", "click", () => choose(1));
on("two-pass", "click", passPair);
on("two-blur", "click", turnTwo);
on("two-close", "click", () => byId("two").close());
on("dropped-close", "click", () => byId("dropped").close());
on("dropped-blur", "click", () => turnDropped(!byId("dropped").classList.contains("blurred")));
on("drop-button", "click", () => byId("file").click());
on("file", "change", () => { if (byId("file").files[0]) scoreFile(byId("file").files[0]); byId("file").value = ""; });

gallery.grid.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const id = gallery.rowOf(button);
  if (button.classList.contains("picture")) {
    if (isBlurred(id)) turnBlur(id);  // who opens a picture asks for it
    openOne(id);
    return;
  }
  const name = classNames()[Number(button.dataset.mark)];
  giveAnswer(id, button.getAttribute("aria-pressed") === "true" ? null : name, false);
});

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, event => { event.preventDefault(); document.body.classList.add("dropping"); });
}
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  if (state.facts.scoring) scoreFile(file);
  else toast("A dropped picture is scored by a server: start `clipsieve review` with --url HOST:PORT.");
});

const moves = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1};
const ways = {g: "grid", o: "one", t: "two"};

listenToKeys(key => {
  if (isOpen("keys") || isOpen("dropped")) return false;
  if (key === "?") byId("keys").showModal();
  else if (key === "u") undo();
  else if (key === "r") train();
  else if (Object.hasOwn(ways, key)) goWay(ways[key]);
  else if (isOpen("two")) return pressedInTwo(key);
  else if (large.isOpen) return pressedInOne(key);
  else return pressedInGrid(key);
});

function pressedInTwo(key) {
  if (key === "ArrowLeft" || key === "1") choose(0);
  else if (key === "ArrowRight" || key === "2") choose(1);
  else if (key === "s" || key === "ArrowDown") passPair();
  else if (key === "b") turnTwo();
  else if (key === "Escape") byId("two").close();
  else return false;
}

function pressedInOne(key) {
  if (Object.hasOwn(moves, key)) change(() => large.move(moves[key]));
  else if (key === "Home") large.goTo(0);
  else if (key === "End") large.goTo(gallery.rows.length - 1);
  else if (key === "Escape") large.dialog.close();
  else if (key === "s") change(goOn);
  else return answerWith(key, null);
}

function pressedInGrid(key) {
  const place = gallery.placeAfter(key);
  if (place !== undefined) { if (gallery.hasFocus) gallery.goTo(place); else gallery.enter(); }
  else if (!gallery.hasFocus) return false;
  else if (key === "Enter") {
    if (document.activeElement.matches("button")) return false;
    if (isBlurred(gallery.active)) turnBlur(gallery.active);
    openOne(gallery.active);
  }
  else if (key === "s") change(goOn);
  else return answerWith(key, null);
}

// A key that answers, about the picture that is shown when its turn comes.
function answerWith(key, id) {
  const choice = choices().find(each => each.key === key);
  if (choice) giveAnswer(id, choice.value, true);
  else if (key === "Delete" || key === "Backspace") giveAnswer(id, null, false);
  else if (key === "b") turnBlur(large.isOpen ? large.row : gallery.active);
  else return false;
}

function chooseKind(kind) {
  state.kind = byId("kind").value = kind;
  writeChoices();
  gallery.rewrite();
  large.rewrite();
  if (state.queue !== "all") readOrder(true);
}

function writeSort() { byId("sort").disabled = !["all", "unanswered"].includes(state.queue); }

async function begin() {
  history.replaceState(null, "", "/");  // the token stays in no history
  await readState();
  if (!state.facts) return;
  const {facts} = state;
  byId("title").textContent = facts.title;
  byId("folder").textContent = facts.folder;
  document.title = `${facts.title} – clipsieve review`;
  byId("column").replaceChildren(...facts.columns.map(column => element("option", {value: column.name, textContent: column.name})));
  byId("column").hidden = facts.columns.length < 2;
  state.column = facts.columns[0]?.name ?? "";
  if (!facts.columns.length) { state.sort = byId("sort").value = "name"; }
  chooseKind(facts.graded ? "grade" : "label");
  const names = [...facts.columns.map(column => column.name), ...facts.classNames];
  blurAll(facts.blur ?? names.some(name => SAFETY.test(name)));
  writeSort();
  await readOrder(true);
  document.body.dataset.ready = "yes";
  setTimeout(poll, 700);
}

begin();
