// Keys of the whole page; those of a control that has the focus are its own.

export function onKeys(actions) {
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const controls = target.matches?.("input, select, textarea");
    if (controls && (key.startsWith("Arrow") || key === "Home" || target.matches("select, textarea"))) return;
    const action = actions[key] || actions[key.toLowerCase()];
    if (!action) return;
    if (action(event.shiftKey) !== false) event.preventDefault();
  });
}
