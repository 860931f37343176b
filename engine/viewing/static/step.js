// Panes side by side move in step: the same pixel in the middle, at the same zoom.

export function inStep(panes) {
  let leader = panes[0]; // the one that was touched last; others follow and do not answer
  for (const pane of panes) {
    for (const touch of ["pointerdown", "wheel", "focusin"]) {
      pane.element.addEventListener(touch, () => { leader = pane; }, { capture: true, passive: true });
    }
    pane.viewer.addHandler("viewport-change", () => {
      if (pane !== leader || !pane.ready) return;
      const place = pane.place();
      for (const other of panes) if (other !== pane && other.ready) other.go(place);
    });
  }
  return { leader: () => leader, lead: (pane) => { leader = pane; } };
}
