// Clips play while they are pointed at, focused or chosen; a click chooses. Tab reaches the chosen one alone, and
// arrow keys the others.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const of = (event) => event.target.closest(".pick");
const all = () => [...element.querySelectorAll(".pick")];

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
const reach = (picked) => all().forEach((pick) => { pick.tabIndex = pick === picked ? 0 : -1; });
const choose = (id) => all().forEach((pick) => {
  const chosen = pick.dataset.id === id;
  pick.classList.toggle("chosen", chosen);
  pick.setAttribute("aria-selected", chosen);
  if (!chosen) return stop(pick);
  reach(pick);
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
element.addEventListener("keydown", (event) => {
  const pick = of(event);
  if (!pick) return;
  const picks = all();
  const columns = picks.filter((one) => one.offsetTop === picks[0].offsetTop).length;
  const down = columns === picks.length ? 1 : columns;  // in one row, every arrow takes the next
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -down, ArrowDown: down }[event.key];
  const place = { Home: 0, End: picks.length - 1 }[event.key] ?? (step && picks.indexOf(pick) + step);
  if (place === undefined) return;
  event.preventDefault();
  if (!picks[place]) return;
  reach(picks[place]);
  picks[place].focus();
});
element.addEventListener("click", (event) => {
  const pick = of(event);
  if (!pick) return;
  trigger("select", { id: pick.dataset.id });
});
window.alproChoose = choose;
