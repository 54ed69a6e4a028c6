"use strict";
// A heading's button sorts its table by the column: numbers as numbers; where a cell is empty, its row stands last.
(() => {
  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  }

  function compare(a, b) {
    const empty = [a, b].map((item) => item === "" || Number.isNaN(item));
    if (empty[0] || empty[1]) return { order: empty[0] - empty[1], last: true };
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return { order, last: false };
  }

  function sort(table, heading) {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, two) => {
      const { order, last } = compare(value(one, heading.cellIndex), value(two, heading.cellIndex));
      return descending && !last ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }

  for (const heading of document.querySelectorAll("table.sortable thead th")) {
    heading.querySelector("button").addEventListener("click", () => sort(heading.closest("table"), heading));
  }
})();
