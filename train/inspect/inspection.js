// Ids and bytes of a token, under the pointer and by arrow keys. Without it they are the browser's own tooltips, and a list.

for (const cut of document.querySelectorAll(".cut")) {
  const tokens = [...cut.children];
  let at = -1;
  for (const token of tokens) {
    token.dataset.tip = token.title;
    token.removeAttribute("title"); // ours replaces the browser's own
  }
  const show = (number) => {
    tokens[at]?.classList.remove("near");
    at = number;
    tip.hidden = at < 0;
    if (at < 0) return;
    tokens[at].classList.add("near");
    showTip(`${at + 1} of ${tokens.length}, ${tokens[at].dataset.tip}`, tokens[at].getBoundingClientRect());
  };
  const steps = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => tokens.length - 1 };
  cut.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(-1);
    if (!(event.key in steps) || !tokens.length) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(steps[event.key](), tokens.length - 1));
    tokens[next].scrollIntoView({ block: "nearest" });
    show(next);
  });
  const underPointer = (event) => show(tokens.indexOf(event.target.closest("i")));
  cut.addEventListener("pointerover", underPointer);
  cut.addEventListener("pointerdown", underPointer);
  cut.addEventListener("pointerleave", () => show(-1));
  cut.addEventListener("blur", () => show(-1));
}
