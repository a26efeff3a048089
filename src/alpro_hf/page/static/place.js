// The address of the page says tab, clip and text, so that it can be sent to a friend, and back and reload work.
// Nothing is written before the visitor does something: tabs also tell of their selection when the page opens.
let arriving = true;
let acted = false;  // since the last step was written
for (const name of ["pointerdown", "keydown"]) {
  addEventListener(name, () => { arriving = false; acted = true; }, true);
}
const read = () => {
  const asked = new URLSearchParams(location.search);
  return { tab: asked.get("tab"), clip: asked.get("clip"), q: asked.get("q") };
};
// What one action changes, such as tab and clip, is one step back, however long the server takes to answer.
let changes = {};
let timer = null;
const write = () => {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  changes = {};
  if (url.href === location.href) return;
  if (acted) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
  acted = false;
};
// An event that comes while the same one is being answered is dropped by the framework, so a second step back waits.
let answering = false;
let waiting = false;
const arrive = () => {
  arriving = true;
  acted = false;
  clearTimeout(timer);
  changes = {};
  waiting = answering;
  if (answering) return;
  answering = true;
  trigger("select", read());
};
window.alproArrived = () => {
  answering = false;
  if (waiting) return arrive();
  timer = setTimeout(() => { arriving = false; }, 500);  // tabs tell of their selection a little later
};
window.alproPlace = (change) => {
  if (arriving) return;
  Object.assign(changes, change);
  clearTimeout(timer);
  timer = setTimeout(write, 400);
};
addEventListener("popstate", arrive);
if (Object.values(read()).some(Boolean)) setTimeout(arrive, 0);
