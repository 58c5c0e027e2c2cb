// A click on a head sorts the table by this column, a second one the other way round; cells without a number go last.
for (const head of document.querySelectorAll("table.sortable thead tr:last-child th")) {
  head.addEventListener("click", () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => {
      const cell = row.cells[column], number = parseFloat(cell.dataset.value ?? cell.textContent);
      return Number.isNaN(number) ? cell.textContent : number;
    };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      return (typeof x === "number" ? y - x : y.localeCompare(x)) * (down ? 1 : -1);
    };
    body.append(...[...body.rows].sort(order));
  });
}
