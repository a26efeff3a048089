// One layer is shown over all frames; its button chooses it.
element.addEventListener("click", (event) => {
  const button = event.target.closest(".layer-button");
  if (!button) return;
  element.querySelectorAll(".layer, .layer-button").forEach((item) => {
    const on = item.dataset.layer === button.dataset.layer;
    item.classList.toggle("on", on);
    if (item.matches("button")) item.setAttribute("aria-pressed", on);
  });
});
