// The address of the page says tab, clip and text, so that it can be sent to a friend, and back and reload work.
// Nothing is written before the visitor does something: tabs also tell of their selection when the page opens.
let arriving = true;
for (const name of ["pointerdown", "keydown"]) addEventListener(name, () => { arriving = false; }, true);
const read = () => {
  const asked = new URLSearchParams(location.search);
  return { tab: asked.get("tab"), clip: asked.get("clip"), q: asked.get("q") };
};
const arrive = () => {
  arriving = true;
  trigger("select", read());
};
window.alproArrived = () => { arriving = false; };
window.alproPlace = (change) => {
  if (arriving) return;
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(change)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  if (url.href !== location.href) history.pushState(null, "", url);
};
addEventListener("popstate", arrive);
if (Object.values(read()).some(Boolean)) setTimeout(arrive, 0);
