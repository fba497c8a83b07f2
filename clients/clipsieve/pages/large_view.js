// The large view: one picture of a gallery, as large as the window, in <dialog id="large">.

// Options: sources(row) lists addresses of the picture, the best last, which takes the place of those before it once it
// is there; missing(row) says why there is none; write(row, dialog) fills in the rest; failed(row), which need not be
// given, is called when no address gives a picture.
class LargeView {
  constructor(gallery, {sources, missing, write, failed = () => {}}) {
    Object.assign(this, {gallery, sources, missing, write, failed});
    this.dialog = byId("large");
    this.row = null;
    this.dialog.addEventListener("close", () => {  // the browser has given the focus back to where it was at first
      gallery.goTo(gallery.rows.indexOf(this.row));
      this.row = null;
    });
    on("large-before", "click", () => this.move(-1));
    on("large-after", "click", () => this.move(1));
    on("large-close", "click", () => this.dialog.close());
  }

  get isOpen() { return this.dialog.open; }

  open(row) {
    if (!this.isOpen) this.dialog.showModal();
    this.row = row;
    this.gallery.goTo(this.gallery.rows.indexOf(row), false);
    byId("large-picture").replaceChildren(this.picture(row));
    const {rows, place} = this.gallery;
    byId("large-place").textContent = `${integer(place + 1)} of ${integer(rows.length)}`;
    byId("large-before").disabled = place === 0;
    byId("large-after").disabled = place === rows.length - 1;
    this.rewrite();
  }

  move(step) { this.goTo(this.gallery.place + step); }

  goTo(place) {
    const row = this.gallery.rows[place];
    if (row !== undefined) this.open(row);
  }

  rewrite() { if (this.isOpen) this.write(this.row, this.dialog); }

  picture(row) {
    const sources = this.sources(row);
    const absent = reason => element("span", {className: "missing", textContent: `no picture: ${reason}`});
    if (!sources.length) return absent(this.missing(row));
    const image = element("img", {draggable: false, alt: ""});
    let shown = -1, failed = 0;
    sources.forEach((address, place) => {
      const loader = new Image();
      loader.addEventListener("load", () => { if (place > shown) { shown = place; image.src = address; } });
      loader.addEventListener("error", () => {
        failed += 1;
        if (failed < sources.length) return;
        image.replaceWith(absent("the browser cannot show the file"));
        this.failed(row);
      });
      loader.src = address;
    });
    return image;
  }
}
