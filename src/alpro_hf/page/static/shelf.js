// Clips play while they are pointed at, focused or chosen; a click chooses.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const of = (event) => event.target.closest(".pick");

const play = (pick) => {
  const picture = pick.querySelector(".picture");
  if (still || picture.querySelector("video")) return;
  const video = document.createElement("video");
  Object.assign(video, { src: picture.dataset.video, muted: true, loop: true, playsInline: true, autoplay: true });
  picture.append(video);
};
const stop = (pick) => {
  if (!pick.classList.contains("chosen")) pick.querySelector("video")?.remove();
};
const choose = (id) => element.querySelectorAll(".pick").forEach((pick) => {
  const chosen = pick.dataset.id === id;
  pick.classList.toggle("chosen", chosen);
  pick.setAttribute("aria-selected", chosen);
  if (!chosen) return stop(pick);
  play(pick);
  const shelf = pick.parentElement;  // scrolls itself, never the page
  shelf.scrollTo({ top: pick.offsetTop - shelf.clientHeight / 3, left: pick.offsetLeft - shelf.clientWidth / 3 });
});

for (const begin of ["mouseover", "focusin"]) {
  element.addEventListener(begin, (event) => { if (of(event)) play(of(event)); });
}
for (const end of ["mouseout", "focusout"]) {
  element.addEventListener(end, (event) => {
    const pick = of(event);
    if (pick && !pick.contains(event.relatedTarget)) stop(pick);
  });
}
element.addEventListener("click", (event) => {
  const pick = of(event);
  if (!pick) return;
  trigger("select", { id: pick.dataset.id });
});
window.alproChoose = choose;
