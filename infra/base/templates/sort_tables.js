"use strict";
// Each column head of a sortable table becomes a button. Rows move within their own tbody, so that what is
// set apart stays apart; cells without a value come last in either direction.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const said = table.parentElement.querySelector(".said");
  const value = (row, column) => {
    const cell = row.cells[column];
    const given = cell.dataset.value ?? cell.textContent.trim();
    if (given === "") return null;
    const number = Number(given);
    return Number.isNaN(number) ? given : number;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first ?? "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of heads) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      for (const body of table.tBodies) {
        const rows = [...body.rows];
        rows.sort((a, b) => {
          const x = value(a, column), y = value(b, column);
          if (x === null || y === null) return (x === null) - (y === null);
          return order === "ascending" ? compare(x, y) : compare(y, x);
        });
        body.append(...rows);
      }
      if (said) said.textContent = `sorted by ${button.textContent.trim()}, ${order}`;
    });
  });
}
