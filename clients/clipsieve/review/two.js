// Two pictures side by side: which is better.

let pair = [];

function openTwo() {
  byId("two").showModal();
  change(nextPair);
}

async function nextPair() {
  const answer = await ask(`/pair?${new URLSearchParams({column: state.column})}`);
  showPair(answer.rows, answer.note);
}

function showPair(rows, note = "") {
  pair = rows;
  for (const row of rows) state.rows.set(row.id, row);
  byId("sides").hidden = byId("two-pass").hidden = !rows.length;
  byId("two-note").hidden = !!rows.length;
  byId("two-note").textContent = note;
  rows.forEach((row, side) => {
    const button = byId(`side-${side}`), image = element("img", {draggable: false, alt: ""});
    image.src = `/thumbnail/${row.id}`;
    const best = new Image();
    best.addEventListener("load", () => { image.src = best.src; });
    image.addEventListener("error", () => passMissing(row));
    best.src = `/picture/${row.id}`;
    button.classList.remove("chosen");
    button.replaceChildren(image);
    button.closest("figure").querySelector("bdi").textContent = shortName(row.name);
    button.setAttribute("aria-label", `${side ? "Right" : "Left"}, ${shortName(row.name)}, is better`);
    button.setAttribute("aria-keyshortcuts", side ? "ArrowRight" : "ArrowLeft");
  });
  writeTwoBlur();
}

function passMissing(row) {
  if (!pair.includes(row)) return;
  toast(`${shortName(row.name)} is no longer there, or cannot be shown. Skipped.`);
  passPair();
}

function writeTwoBlur() {
  const blurred = pair.some(row => isBlurred(row.id));
  byId("two").classList.toggle("blurred", blurred);
  byId("two-blur").textContent = blurred ? "Show" : "Blur";
  for (const image of byId("sides").querySelectorAll("img")) image.alt = blurred ? "Blurred picture" : "Picture";
}

function turnTwo() {
  const blurred = pair.some(row => isBlurred(row.id));
  for (const row of pair) if (isBlurred(row.id) === blurred) turnBlur(row.id);
  writeTwoBlur();
}

const choose = side => change(async () => {
  if (pair.length < 2) return;
  byId(`side-${side}`).classList.add("chosen");
  try {
    await ask("/choose", {winner: pair[side].id, loser: pair[1 - side].id});
  } catch (error) {
    if (error.status !== 410) throw error;
    toast(`${error.message} Skipped.`);
  }
  readState();
  await nextPair();
});

const passPair = () => change(async () => {
  if (pair.length < 2) return;
  await ask("/pass", {one: pair[0].id, other: pair[1].id});
  await nextPair();
});
