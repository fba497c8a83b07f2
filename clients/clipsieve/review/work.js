// What goes on in the background: scores of a server, training, and pictures that are dropped onto the page.

let before = null;

// Reads the state; what has changed is read anew.
async function readState() {
  let facts;
  try { facts = await ask("/state"); } catch (error) { showProblem(error); return; }
  const former = before;
  before = state.facts = facts;
  writeState();
  if (!former) return;
  if (former.version.scores !== facts.version.scores) { forgetRows(); readOrder(!large.isOpen && !gallery.hasFocus); }
  else if (former.version.answers !== facts.version.answers) refreshRows();
}

// Answers that another page gave, or an editor.
async function refreshRows() {
  const ids = [...new Set([...gallery.cards.keys(), ...(large.row === null ? [] : [large.row])])];
  if (ids.length) ids.forEach(want);
}

function writeState() {
  const {facts} = state, {counts, training} = facts;
  const counted = [["label", "labels"], ["grade", "grades"], ["pair", "pairs"]].filter(([kind]) => counts[kind]);
  byId("counted").textContent = counted.map(([kind, many]) => `${integer(counts[kind])} ${counts[kind] === 1 ? kind : many}`).join(", ") || "nothing answered yet";
  byId("two-count").textContent = `${integer(counts.pair)} compared`;
  byId("undo").disabled = byId("large-undo").disabled = byId("two-undo").disabled = !facts.canUndo;
  byId("train").hidden = !training;
  byId("train").disabled = !!training && training.state === "running";
  byId("drop-button").hidden = !facts.scoring;
  byId("lost").hidden = !facts.lost;
  byId("lost").firstElementChild.textContent = `${integer(facts.lost)} ${facts.lost === 1 ? "answer" : "answers"} given here ${facts.lost === 1 ? "is" : "are"} no longer in the files: an editor may have saved an older one.`;
  byId("notices").hidden = !facts.notices.length;
  byId("notices").replaceChildren(...facts.notices.map(text => element("li", {textContent: text})));
  writeWork();
}

function writeWork() {
  const {scoring, training} = state.facts, bar = byId("work-bar");
  const trains = training && training.state !== "idle", scores = scoring && (scoring.running || scoring.problem);
  byId("work").hidden = !trains && !scores;
  byId("work").classList.toggle("failed", !!(trains ? training.state === "failed" : scores && scoring.problem));
  if (trains) {
    bar.hidden = training.state !== "running";
    bar.removeAttribute("value");
    byId("work-line").textContent = training.state === "running" ? `training ${training.step}: ${training.line}`
      : training.state === "done" ? "Trained anew: this is the new order." : `Training failed; the order is as before. ${training.line}`;
  } else if (scores) {
    bar.hidden = !scoring.running;
    Object.assign(bar, {max: scoring.total, value: scoring.done});
    byId("work-line").textContent = scoring.problem ? `Scoring stopped: ${scoring.problem}`
      : `scoring: ${integer(scoring.done)} of ${integer(scoring.total)}${scoring.failed ? `, ${integer(scoring.failed)} without a score` : ""}`;
  }
}

const train = () => change(async () => {
  if (!state.facts.training) throw new Error("Training anew needs a recipe: start `clipsieve review` with --recipe NAME.");
  await ask("/train", {});
  await readState();
});

async function poll() {
  if (!document.hidden) await readState();
  const busy = state.facts && (state.facts.scoring?.running || state.facts.training?.state === "running");
  setTimeout(poll, busy ? 700 : 2500);
}

// A dropped picture

async function scoreFile(file) {
  const dialog = byId("dropped"), table = dialog.querySelector("table");
  dialog.querySelector("bdi").textContent = file.name || "dropped picture";
  const image = element("img", {alt: file.name || "dropped picture"}), address = URL.createObjectURL(file);
  image.addEventListener("error", () => image.replaceWith(element("span", {className: "missing", textContent: "the browser cannot show this file"})));
  image.src = address;
  byId("dropped-picture").replaceChildren(image);
  byId("dropped-line").textContent = "scoring …";
  table.hidden = true;
  turnDropped(state.blurAll);
  if (!dialog.open) dialog.showModal();
  try {
    const answer = await ask("/score", file);
    byId("dropped-line").textContent = answer.error ?? "";
    table.hidden = !answer.heads;
    table.querySelector("tbody").replaceChildren(...(answer.heads ?? []).map(each =>
      element("tr", {}, ...[each.name, digits(each.score), each.band, each.className].map(text => element("td", {textContent: text})))));
  } catch (error) { byId("dropped-line").textContent = error.message; }
}

function turnDropped(blurred) {
  byId("dropped").classList.toggle("blurred", blurred);
  byId("dropped-blur").textContent = blurred ? "Show" : "Blur";
}
