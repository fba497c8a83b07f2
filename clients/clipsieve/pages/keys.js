// Keys: what each does, by name. None acts while someone types, or with Ctrl, Alt or Meta but for Ctrl+Z.

// pressed(key) does what a key does, and gives false where it does nothing.
function listenToKeys(pressed) {
  document.addEventListener("keydown", event => {
    if (event.target.closest("select, textarea, input:not([type=checkbox])")) return;
    const undo = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "z";
    if ((event.ctrlKey || event.metaKey || event.altKey) && !undo) return;
    if (pressed(undo ? "u" : event.key) !== false) event.preventDefault();
  });
}

// A list that was chosen from with the mouse gives the focus back, so that the next arrow key does not choose again.
function giveFocusBack(select) {
  let byPointer = false;
  select.addEventListener("pointerdown", () => { byPointer = true; });
  select.addEventListener("keydown", () => { byPointer = false; });
  select.addEventListener("change", () => { if (byPointer) select.blur(); });
}
