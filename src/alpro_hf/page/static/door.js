// A click on a result opens its clip, or leads to another tab with it.
const back = (dialog) => { dialog.querySelector("video")?.pause(); dialog.close(); };
const view = (card) => {
  document.querySelector("dialog.viewer")?.remove();
  const small = card.querySelector("video");
  const dialog = document.createElement("dialog");
  dialog.className = "viewer";
  const video = document.createElement("video");
  Object.assign(video, { src: small.getAttribute("src"), controls: true, playsInline: true, autoplay: true, muted: true });
  Object.assign(video.dataset, small.dataset);
  video.loop = !("start" in small.dataset);
  const title = document.createElement("p");
  title.textContent = card.dataset.title;
  const close = document.createElement("button");
  Object.assign(close, { type: "button", textContent: "Close", autofocus: true });
  close.addEventListener("click", () => back(dialog));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) back(dialog); });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.setAttribute("aria-label", card.dataset.title);
  dialog.append(video, title, close);
  document.querySelector(".gradio-container").append(dialog);
  dialog.showModal();
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-door]");
  if (!button) return;
  const card = button.closest(".card");
  if (button.dataset.door === "open") view(card);
  else trigger("select", { door: button.dataset.door, id: card.dataset.id });
});

// A moment plays from its start and stops at its end. What a browser cannot play is asked for as a small version.
if (!window.alproMoments) {
  window.alproMoments = true;
  const times = (video) => ["start", "end"].map((side) => Number(video.dataset[side]));
  const on = (name, act) => document.addEventListener(name, (event) => {
    if (event.target instanceof HTMLVideoElement) act(event.target);
  }, true);
  const whole = (video) => !("start" in video.dataset) || "small" in video.dataset;
  on("loadedmetadata", (video) => { if (!whole(video)) [video.currentTime] = times(video); });
  on("play", (video) => {
    const [start, end] = times(video);
    if (!whole(video) && (video.currentTime < start - 0.5 || video.currentTime >= end)) video.currentTime = start;
  });
  on("timeupdate", (video) => {
    const [start, end] = times(video);
    if (whole(video) || video.currentTime < end) return;
    if (video.loop) video.currentTime = start;
    else { video.pause(); video.currentTime = end; }
  });
  on("error", (video) => {
    if (!video.dataset.fallback || "small" in video.dataset) return;
    video.dataset.small = "";
    video.src = video.dataset.fallback;
  });
  on("mouseover", (video) => { if (video.preload === "none") video.play().catch(() => {}); });
}
