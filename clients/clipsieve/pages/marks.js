// Marks: 1 or 0 by a picture's name, kept in this browser under a key, and each change can be undone.

class Marks {
  constructor() {
    this.values = new Map();
    this.history = [];
    this.isKept = true;
  }

  get size() { return this.values.size; }
  of(name) { return this.values.get(name); }
  count(value) { return [...this.values.values()].filter(each => each === value).length; }
  get canUndo() { return this.history.length > 0; }

  // Reads what was kept under a key; what was changed before cannot be undone any more.
  open(key) {
    this.key = key;
    this.history = [];
    try {
      this.values = new Map(JSON.parse(localStorage.getItem(key) ?? "[]"));
    } catch {
      this.values = new Map();
      this.isKept = false;
    }
  }

  // Marks a picture, or with null removes its mark.
  set(name, value) {
    if ((this.of(name) ?? null) === value) return;
    this.history.push([[name, this.of(name)]]);
    this.put(name, value);
    this.keep();
  }

  clear() {
    if (this.size) this.history.push([...this.values]);
    this.values.clear();
    this.keep();
  }

  // Takes the last change back; the name of its first picture, undefined when there is none.
  undo() {
    const changes = this.history.pop();
    if (!changes) return undefined;
    for (const [name, before] of changes) this.put(name, before ?? null);
    this.keep();
    return changes[0][0];
  }

  put(name, value) {
    if (value === null) this.values.delete(name); else this.values.set(name, value);
  }

  keep() {
    try {
      if (this.size) localStorage.setItem(this.key, JSON.stringify([...this.values]));
      else localStorage.removeItem(this.key);
    } catch {
      this.isKept = false;
    }
  }
}
