// The gallery: a grid of cards. Only the cards near the window, and the active one, are in the document.

const GAP = 10;

// Options: make(row) gives the card of a row; write(row, card) fills in what changes; below is the height in pixels of
// what stands under a picture; bar is an element that may cover the top of the window.
class Gallery {
  constructor(grid, {make, write, below, bar}) {
    Object.assign(this, {grid, make, write, below, bar});
    this.rows = [];
    this.active = null;
    this.cards = new Map();
    this.across = 1;
    this.width = this.height = 0;
    grid.addEventListener("focusin", event => this.activate(this.rowOf(event.target)));
    addEventListener("scroll", () => requestAnimationFrame(() => this.draw(false)), {passive: true});
    addEventListener("resize", () => this.layOut());
  }

  // Shows these rows, in this order. Another order begins at its first picture; the active one stays where it is still shown.
  show(rows, fromTheFirst) {
    this.rows = rows;
    if (fromTheFirst || !rows.includes(this.active)) this.active = rows[0] ?? null;
    this.layOut();
    if (fromTheFirst && this.grid.getBoundingClientRect().top < this.covered()) this.scrollTo(0);
  }

  layOut() {
    const room = this.grid.clientWidth;
    this.across = Math.max(2, Math.floor((room + GAP) / (166 + GAP)));
    this.width = (room - GAP * (this.across - 1)) / this.across;
    this.height = this.width * 0.92 + this.below;
    this.grid.style.setProperty("--card-width", `${this.width}px`);
    this.grid.style.setProperty("--card-height", `${this.height}px`);
    this.grid.style.height = `${Math.ceil(this.rows.length / this.across) * (this.height + GAP)}px`;
    this.draw(true);
  }

  draw(rewrite) {
    const pitch = this.height + GAP;
    const top = -this.grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((top - pitch) / pitch)) * this.across;
    const last = Math.min(this.rows.length, Math.ceil((top + innerHeight + pitch) / pitch) * this.across);
    const places = new Map();
    for (let place = first; place < last; place++) places.set(this.rows[place], place);
    if (this.active !== null && !places.has(this.active)) places.set(this.active, this.rows.indexOf(this.active));
    for (const [row, card] of this.cards) {
      if (!places.has(row)) { card.remove(); this.cards.delete(row); }
    }
    for (const [row, place] of places) {
      const isNew = !this.cards.has(row);
      if (isNew) { this.cards.set(row, this.make(row)); this.grid.append(this.cards.get(row)); }
      this.cards.get(row).style.transform = `translate(${(place % this.across) * (this.width + GAP)}px, ${Math.floor(place / this.across) * pitch}px)`;
      if (isNew || rewrite) this.rewrite(row);
    }
    const empty = this.grid.querySelector(".empty");
    if (!this.rows.length && !empty) this.grid.append(element("p", {className: "empty", textContent: "No picture is like that."}));
    if (this.rows.length && empty) empty.remove();
  }

  // Writes a card, if it is in the document; all of them without a row.
  rewrite(row) {
    if (row === undefined) { for (const each of this.cards.keys()) this.rewrite(each); return; }
    const card = this.cards.get(row);
    if (!card) return;
    this.write(row, card);
    card.tabIndex = row === this.active ? 0 : -1;
    for (const button of card.querySelectorAll("button")) button.tabIndex = card.tabIndex;
  }

  activate(row) {
    const before = this.active;
    this.active = row;
    this.rewrite(before);
    this.rewrite(row);
  }

  rowOf(node) { return Number(node.closest(".card").dataset.row); }
  get place() { return this.rows.indexOf(this.active); }
  get hasFocus() { return this.grid.contains(document.activeElement); }

  // Height of what covers the top of the window.
  covered() { return getComputedStyle(this.bar).position === "sticky" ? this.bar.offsetHeight : 0; }

  topOf(place) {
    return this.grid.getBoundingClientRect().top + Math.floor(place / this.across) * (this.height + GAP);
  }

  scrollTo(place) {
    const top = this.topOf(place), covered = this.covered();
    if (top < covered + GAP) scrollBy(0, top - covered - GAP);
    else if (top + this.height > innerHeight - GAP) scrollBy(0, top + this.height - innerHeight + GAP);
  }

  goTo(place, focus = true) {
    if (!this.rows.length) return;
    const within = Math.min(this.rows.length - 1, Math.max(0, place));
    const before = this.active;
    this.active = this.rows[within];
    this.scrollTo(within);
    this.draw(false);
    this.rewrite(before);
    this.rewrite(this.active);
    if (focus) this.cards.get(this.active).focus({preventScroll: true});
  }

  // The first key brings the focus into the grid, to a picture that is seen.
  enter() {
    const isSeen = place => this.topOf(place) >= this.covered() - 1 && this.topOf(place) + this.height / 2 <= innerHeight;
    if (isSeen(this.place)) { this.goTo(this.place); return; }
    const seen = this.rows.findIndex((_, place) => place % this.across === 0 && isSeen(place));
    this.goTo(seen < 0 ? this.place : seen);
  }

  // Where an arrow key leads; undefined for another key.
  placeAfter(key) {
    const moves = {
      ArrowLeft: place => place - 1,
      ArrowRight: place => place + 1,
      ArrowUp: place => place < this.across ? place : place - this.across,
      ArrowDown: place => place + this.across,
      Home: () => 0,
      End: () => this.rows.length - 1,
    };
    return Object.hasOwn(moves, key) ? moves[key](this.place) : undefined;
  }
}
