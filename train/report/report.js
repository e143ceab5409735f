"use strict";
// Sorting and tooltips. Without them the page says the same.

function sortBy(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const compare = (rowA, rowB) => {
    const [a, b] = [rowA, rowB].map((row) => row.cells[column].dataset.value);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // what is missing comes last
    const difference = Number(a) - Number(b);
    return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

const tip = document.getElementById("tip");
function showTip(text, box) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(8, Math.min(box.x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, box.y - tip.offsetHeight - 8)}px`;
}

for (const chart of document.querySelectorAll(".chart")) {
  const marks = [...chart.querySelectorAll(".mark")];
  for (const mark of marks) {
    mark.dataset.tip = mark.querySelector("title").textContent;
    mark.querySelector("title").remove(); // ours replaces the browser's own
  }
  const show = (event) => {
    let nearest = null, distance = 28;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const apart = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (apart < distance) [nearest, distance] = [mark, apart];
    }
    for (const mark of marks) mark.classList.toggle("near", mark === nearest);
    if (nearest) showTip(nearest.dataset.tip, nearest.getBoundingClientRect());
    else tip.hidden = true;
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", () => {
    tip.hidden = true;
    for (const mark of marks) mark.classList.remove("near");
  });
}
