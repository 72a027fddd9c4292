// Draws a picture with its heat, what is kept of it, and what is covered; and lets parts of it be covered.

const HEAT = [[255, 237, 160], [254, 217, 118], [254, 178, 76], [253, 140, 60], [252, 77, 42], [226, 25, 28], [187, 0, 38]];
const OUTLINE = "#00e0ff"; // not on the heat scale

function heatColour(value, alpha) {
  const at = value * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  const mixed = HEAT[low].map((part, index) => Math.round(part + (HEAT[low + 1][index] - part) * (at - low)));
  return `rgba(${mixed.join(",")},${alpha})`;
}

// Draws `layers` = {heat, keeps, covers}: rasters {xs, ys, cells} of numbers, boxes of fractions, or null.
export function draw(canvas, picture, layers) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round((canvas.clientWidth || 600) * scale));
  canvas.width = width;
  canvas.height = Math.max(1, Math.round((width * picture.naturalHeight) / picture.naturalWidth));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (layers.keeps) eachCell(canvas, layers.keeps, (kept, box) => {
    if (kept) return;
    pen.fillStyle = "rgba(16,18,26,0.52)";
    pen.fillRect(...box);
  });
  if (layers.heat) eachCell(canvas, layers.heat, (value, box) => {
    if (value < 0.02) return;
    pen.fillStyle = heatColour(value, 0.5 * value); // the picture's own lines stay visible through it
    pen.fillRect(...box);
    pen.globalCompositeOperation = "multiply";
    pen.fillStyle = heatColour(value, 0.6 * value);
    pen.fillRect(...box);
    pen.globalCompositeOperation = "source-over";
  });
  if (layers.keeps) outline(canvas, pen, layers.keeps, scale);
  for (const box of layers.covers || []) drawCover(canvas, pen, box, scale);
}

function eachCell(canvas, { xs, ys, cells }, visit) {
  const columns = xs.length - 1;
  cells.forEach((value, index) => {
    const [x, y] = [index % columns, Math.floor(index / columns)];
    // Whole pixels, so that neighbours neither overlap nor leave a seam.
    const [left, right] = [Math.round(xs[x] * canvas.width), Math.round(xs[x + 1] * canvas.width)];
    const [top, bottom] = [Math.round(ys[y] * canvas.height), Math.round(ys[y + 1] * canvas.height)];
    visit(value, [left, top, right - left, bottom - top]);
  });
}

function outline(canvas, pen, { xs, ys, cells }, scale) {
  const [columns, rows] = [xs.length - 1, ys.length - 1];
  const kept = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows && Boolean(cells[y * columns + x]);
  const inset = 2 * scale;
  const at = (edge, size) => Math.min(Math.max(edge * size, inset), size - inset); // lines on the rim stay whole
  pen.beginPath();
  for (let y = 0; y <= rows; y++) {
    for (let x = 0; x <= columns; x++) {
      const [left, top] = [at(xs[x], canvas.width), at(ys[y], canvas.height)];
      if (x < columns && kept(x, y) !== kept(x, y - 1)) {
        pen.moveTo(left, top);
        pen.lineTo(at(xs[x + 1], canvas.width), top);
      }
      if (y < rows && kept(x, y) !== kept(x - 1, y)) {
        pen.moveTo(left, top);
        pen.lineTo(left, at(ys[y + 1], canvas.height));
      }
    }
  }
  pen.lineCap = "square";
  for (const [colour, line] of [["#101218", 3.5], [OUTLINE, 1.8]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line * scale * Math.min(1, canvas.width / scale / 560); // thinner over small cells
    pen.stroke();
  }
}

function drawCover(canvas, pen, [x0, y0, x1, y1], scale) {
  const box = [x0 * canvas.width, y0 * canvas.height, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height];
  pen.save();
  pen.beginPath();
  pen.rect(...box);
  pen.clip();
  pen.fillStyle = "rgba(120,124,134,0.94)";
  pen.fillRect(...box);
  pen.strokeStyle = "rgba(255,255,255,0.5)";
  pen.lineWidth = 2 * scale;
  pen.beginPath();
  for (let x = box[0] - box[3]; x < box[0] + box[2]; x += 10 * scale) {
    pen.moveTo(x, box[1] + box[3]);
    pen.lineTo(x + box[3], box[1]);
  }
  pen.stroke();
  pen.restore();
  pen.strokeStyle = "#ffffff";
  pen.lineWidth = 2 * scale;
  pen.strokeRect(...box);
}

// Lets boxes be drawn while `isOn()`; calls moved(box) while one is, and made(box) once it is done.
export function coverable(canvas, { isOn, moved, made, left }) {
  let start = null;
  let box = [0.4, 0.4, 0.6, 0.6];
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    const part = (value, low, size) => Math.min(1, Math.max(0, (value - low) / size));
    return [part(event.clientX, frame.left, frame.width), part(event.clientY, frame.top, frame.height)];
  };
  const between = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  canvas.addEventListener("pointerdown", (event) => {
    if (!isOn()) return;
    start = at(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start) moved(between(start, at(event)));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const drawn = between(start, at(event));
    start = null;
    if (drawn[2] - drawn[0] > 0.005 && drawn[3] - drawn[1] > 0.005) made(drawn);
    else moved(null);
  });
  canvas.addEventListener("pointercancel", () => { start = null; moved(null); });
  canvas.addEventListener("keydown", (event) => {
    if (!isOn()) return;
    const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
    if (step) {
      event.preventDefault();
      box = shifted(box, step, event.shiftKey);
      moved(box);
    } else if (event.key === "Enter") {
      event.preventDefault();
      made(box);
    } else if (event.key === "Escape") left();
  });
  canvas.addEventListener("focus", () => { if (isOn() && !start) moved(box); });
}

function shifted([x0, y0, x1, y1], [x, y], sizes) {
  if (sizes) return [x0, y0, Math.min(1, Math.max(x0 + 0.02, x1 + x)), Math.min(1, Math.max(y0 + 0.02, y1 + y))];
  const [across, down] = [Math.min(1 - x1, Math.max(-x0, x)), Math.min(1 - y1, Math.max(-y0, y))];
  return [x0 + across, y0 + down, x1 + across, y1 + down];
}
