// Columns in which nothing was measured go; where the page is narrow, a row is a list with these labels.
for (const table of document.querySelectorAll("table")) {
  const [head, ...rows] = [...table.rows];
  const titles = [...head.cells].map((cell) => cell.textContent);
  for (const [place, title] of titles.entries()) {
    const cells = rows.map((row) => row.cells[place]).filter(Boolean); // a heading of rows has one
    const empty = place > 0 && cells.every((cell) => cell.textContent.trim() === "–");
    for (const cell of [head.cells[place], ...cells]) cell.hidden = empty;
    for (const cell of cells) cell.dataset.label = title;
  }
}
