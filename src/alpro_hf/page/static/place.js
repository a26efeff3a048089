// The address of the page says tab, clip and text, so that it can be sent to a friend, and back and reload work.
// Nothing is written before the visitor does something: tabs also tell of their selection when the page opens.
let arriving = true;
for (const name of ["pointerdown", "keydown"]) addEventListener(name, () => { arriving = false; }, true);
const read = () => {
  const asked = new URLSearchParams(location.search);
  return { tab: asked.get("tab"), clip: asked.get("clip"), q: asked.get("q") };
};
// What changes together, such as tab and clip, is one step back.
let changes = {};
let timer = null;
const write = () => {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  changes = {};
  if (url.href !== location.href) history.pushState(null, "", url);
};
const arrive = () => {
  arriving = true;
  clearTimeout(timer);
  changes = {};
  trigger("select", read());
};
window.alproArrived = () => setTimeout(() => { arriving = false; }, 500);  // tabs tell of their selection a little later
window.alproPlace = (change) => {
  if (arriving) return;
  Object.assign(changes, change);
  clearTimeout(timer);
  timer = setTimeout(write, 400);
};
addEventListener("popstate", arrive);
if (Object.values(read()).some(Boolean)) setTimeout(arrive, 0);
