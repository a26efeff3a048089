// A file beyond the limit is not sent at all; the page says so in its own words.
document.addEventListener("change", (event) => {
  const input = event.target;
  if (!(input instanceof HTMLInputElement) || input.type !== "file") return;
  const large = [...input.files].filter((file) => file.size > MOST_BYTES);
  if (!large.length) return;
  trigger("select", { names: large.map((file) => file.name) });
  const rest = new DataTransfer();
  [...input.files].filter((file) => file.size <= MOST_BYTES).forEach((file) => rest.items.add(file));
  input.files = rest.files;
  if (!rest.files.length) event.stopImmediatePropagation();
}, true);
