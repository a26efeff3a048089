// A box is drawn on any frame and shown on all; it snaps to patches. A tap takes a box around its place, because a
// finger that moves scrolls the page. Arrow keys move the box, and with Shift they move its lower right corner.
let start = null;
let box = null;
let soon = null;
const strip = () => element.querySelector(".drawing");
const sides = () => [Number(strip().dataset.rows), Number(strip().dataset.columns)];

const show = () => strip().querySelectorAll(".box").forEach((mark) => {
  const [rows, columns] = sides();
  mark.style.top = `${(100 * box[0]) / rows}%`;
  mark.style.left = `${(100 * box[1]) / columns}%`;
  mark.style.height = `${(100 * (box[2] - box[0])) / rows}%`;
  mark.style.width = `${(100 * (box[3] - box[1])) / columns}%`;
});

const patchAt = (frame, event) => {
  const area = frame.getBoundingClientRect();
  const [rows, columns] = sides();
  const place = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return [
    place((event.clientY - area.top) / area.height, rows),
    place((event.clientX - area.left) / area.width, columns),
  ];
};

const around = (patch) => {
  const sizes = sides().map((side) => Math.max(1, Math.round(side * 0.55)));
  const first = patch.map((at, i) => Math.min(sides()[i] - sizes[i], Math.max(0, at - Math.floor(sizes[i] / 2))));
  return [first[0], first[1], first[0] + sizes[0], first[1] + sizes[1]];
};

const reset = () => {
  if (!strip()) return;
  box = strip().dataset.box.split(",").map(Number);
  show();
};

element.addEventListener("pointerdown", (event) => {
  const frame = event.target.closest(".drawing .frame");
  if (!frame || event.button !== 0) return;
  start = { frame, patch: patchAt(frame, event), moved: false, x: event.clientX, y: event.clientY };
  if (event.pointerType === "touch") return;
  event.preventDefault();
  strip().focus({ preventScroll: true });
  frame.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!start || event.pointerType === "touch") return;
  const [row, column] = patchAt(start.frame, event);
  const [top, left] = start.patch;
  if (row !== top || column !== left) start.moved = true;
  if (!start.moved) return;
  box = [Math.min(top, row), Math.min(left, column), Math.max(top, row) + 1, Math.max(left, column) + 1];
  show();
});
element.addEventListener("pointerup", (event) => {
  if (!start) return;
  const far = Math.hypot(event.clientX - start.x, event.clientY - start.y) > 10;
  if (event.pointerType === "touch" && far) {
    start = null;
    return;
  }
  if (!start.moved) box = around(start.patch);
  start = null;
  show();
  trigger("select", { box });
});
element.addEventListener("pointercancel", () => { start = null; });  // the finger scrolls

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
element.addEventListener("keydown", (event) => {
  const step = steps[event.key];
  if (!step || event.target !== strip()) return;
  event.preventDefault();
  const moved = box.map((side, i) => (event.shiftKey && i < 2 ? side : side + step[i % 2]));
  const inside = [0, 1].every((i) => 0 <= moved[i] && moved[i] < moved[i + 2] && moved[i + 2] <= sides()[i]);
  if (!inside) return;
  box = moved;
  show();
  clearTimeout(soon);
  soon = setTimeout(() => trigger("select", { box }), 250);
});
watch("value", reset);
reset();
