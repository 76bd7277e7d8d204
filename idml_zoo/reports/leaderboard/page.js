"use strict";
// Sorting, filtering and opening of what the page already holds; without it everything is open and in order of rank.
const rows = [...document.querySelectorAll("tr.row")];
const evidence = (row) => row.nextElementSibling?.classList.contains("evidence") ? row.nextElementSibling : null;

function toggle(row, open) {
  const below = evidence(row), button = row.querySelector("th button");
  if (!below) return;
  below.hidden = open === undefined ? !below.hidden : !open;
  button.setAttribute("aria-expanded", String(!below.hidden));
}

for (const row of rows) {
  toggle(row, false);
  row.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !String(getSelection())) toggle(row);
  });
}

function value(row, column) {
  const cell = row.children[column];
  if (cell.dataset.value === undefined) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function sort(head) {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const first = head.dataset.first || "descending";
  const other = first === "descending" ? "ascending" : "descending";
  const direction = head.getAttribute("aria-sort") === first ? other : first;
  for (const h of head.parentNode.children) if (h.hasAttribute("aria-sort")) h.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const mine = [...body.children].filter((r) => r.classList.contains("row")).map((r) => [r, value(r, column), evidence(r)]);
  mine.sort(([, a], [, b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // missing ones last, either way
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  });
  for (const [row, , below] of mine) body.append(row, ...(below ? [below] : []));
}

for (const button of document.querySelectorAll("thead button"))
  button.addEventListener("click", () => sort(button.closest("th")));

const form = document.querySelector("form");

function filter() {
  const wanted = Object.fromEntries([...new FormData(form)].filter(([, v]) => v.trim()));
  let shown = 0;
  for (const row of rows) {
    const fits = Object.entries(wanted).every(([name, v]) =>
      name === "text" ? row.textContent.toLowerCase().includes(v.trim().toLowerCase()) : row.dataset[name] === v);
    if (!fits) toggle(row, false);
    row.hidden = !fits;
    shown += fits;
  }
  for (const part of document.querySelectorAll(".part")) part.hidden = !part.querySelector("tr.row:not([hidden])");
  for (const part of document.querySelectorAll("main > section")) part.hidden = !part.querySelector("tr.row:not([hidden])");
  form.querySelector("output").value = `${shown} of ${rows.length} rows`;
  const address = String(new URLSearchParams(wanted));
  if (address || location.hash.includes("=")) history.replaceState(null, "", "#" + address); // else it may name a section
}

for (const [name, v] of new URLSearchParams(location.hash.slice(1)))
  if (form.elements[name]) form.elements[name].value = v;
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
