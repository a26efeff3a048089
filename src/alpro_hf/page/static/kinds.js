// A kind of opposites starts its example.
element.addEventListener("click", (event) => {
  const kind = event.target.closest("button.kind");
  if (kind) trigger("select", { kind: kind.dataset.kind });
});
