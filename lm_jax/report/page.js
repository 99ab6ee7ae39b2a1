// A click on a heading sorts its table; a second click turns the order round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.parentElement, column = th.cellIndex, body = th.closest("table").tBodies[0];
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "" || a === "nan" || b === "nan") {
        const last = v => v === "" || v === "nan";  // what is missing stays at the end
        return (last(a) - last(b)) * (down ? -1 : 1);
      }
      const order = a - b;
      return Number.isNaN(order) ? a.localeCompare(b) : order;
    };
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1));
    body.append(...rows);
  });
}
// The saved figure has the colours of the light theme, which the style names second.
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    const svg = button.parentElement.querySelector(".wide svg").cloneNode(true);
    svg.setAttribute("font-family", "system-ui, sans-serif");
    const text = svg.outerHTML.replace(/var\(--\w+, (#\w+)\)/g, "$1");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = button.dataset.file;
    link.click();
  });
}
