// Faults that an eye would see: text over text, a legend over data, faint text, text out of its place.
const faults = [];
await new Promise((done) => setTimeout(done, 300));
const visible = (node) => node.getClientRects().length && getComputedStyle(node).visibility !== "hidden";
const rgb = (text) => {
  const [r, g, b, a = 1] = (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  return {r, g, b, a: text === "transparent" ? 0 : a};
};
const over = (top, under) => ({a: 1, ...Object.fromEntries(["r", "g", "b"].map((c) => [c, top[c] * top.a + under[c] * (1 - top.a)]))});
const luminance = (colour) => ["r", "g", "b"].map((c) => colour[c] / 255)
  .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (one, other) => {
  const [light, dark] = [luminance(one), luminance(other)].sort((x, y) => y - x);
  return (light + 0.05) / (dark + 0.05);
};
const grounds = new Map();
function behind(node) {
  if (!(node instanceof Element)) return {r: 255, g: 255, b: 255, a: 1};
  if (!grounds.has(node)) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    grounds.set(node, colour.a === 1 ? colour : over(colour, behind(node.parentElement)));
  }
  return grounds.get(node);
}
// Corners of a text as it is drawn, turned ones too.
function corners(node) {
  if (!(node instanceof SVGElement)) {
    const {left, top, right, bottom} = node.getBoundingClientRect();
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  }
  const box = node.getBBox(), matrix = node.getScreenCTM();
  return [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => {
    const point = new DOMPoint(box.x + x * box.width, box.y + y * box.height).matrixTransform(matrix);
    return [point.x, point.y];
  });
}
// How far two convex shapes reach into each other, in pixels: 0 where a line separates them.
function depth(one, other) {
  let least = Infinity;
  for (const shape of [one, other]) {
    shape.forEach(([x, y], i) => {
      const [u, v] = shape[(i + 1) % shape.length], length = Math.hypot(u - x, v - y) || 1;
      const along = (points) => points.map(([a, b]) => (a * (y - v) + b * (u - x)) / length);
      const [p, q] = [along(one), along(other)];
      least = Math.min(least, Math.max(...p) - Math.min(...q), Math.max(...q) - Math.min(...p));
    });
  }
  return Math.max(0, least);
}
// A heat-map is a picture: what is behind a text on it is the picture's own pixel.
async function pixels(image) {
  const picture = new Image();
  picture.src = image.getAttribute("href") || image.getAttribute("xlink:href");
  await picture.decode();
  const canvas = Object.assign(document.createElement("canvas"), {width: picture.width, height: picture.height});
  const context = canvas.getContext("2d"), box = image.getBoundingClientRect();
  context.drawImage(picture, 0, 0);
  return (text) => {
    const {left, right, top, bottom} = text.getBoundingClientRect();
    const x = ((left + right) / 2 - box.left) / box.width, y = ((top + bottom) / 2 - box.top) / box.height;
    const [r, g, b] = context.getImageData(Math.floor(x * picture.width), Math.floor(y * picture.height), 1, 1).data;
    return {r, g, b, a: 1};
  };
}
for (const panel of document.querySelectorAll(".plot > div:not([hidden])")) {
  const image = panel.querySelector(".heatmaplayer image"), under = image && await pixels(image);
  const where = panel.parentElement.id;
  const texts = [...panel.querySelectorAll("svg text")].filter((t) => t.textContent.trim() && visible(t));
  const shapes = texts.map(corners);
  texts.forEach((text, i) => {
    for (let k = i + 1; k < texts.length; k++) {
      if (depth(shapes[i], shapes[k]) > 2) faults.push(`${where}: "${text.textContent}" over "${texts[k].textContent}"`);
    }
    const card = panel.getBoundingClientRect();
    if (panel.scrollWidth <= panel.clientWidth && shapes[i].some(([x]) => x < card.left - 2 || x > card.right + 2)) faults.push(`${where}: "${text.textContent}" is cut`);
    const ground = image && text.closest(".scatterlayer") ? under(text) : behind(panel), ink = rgb(getComputedStyle(text).fill);
    const ratio = contrast(over(ink, ground), ground);
    if (ratio < 4.5) faults.push(`${where}: "${text.textContent}" has contrast ${ratio.toFixed(2)}`);
  });
  const legend = panel.querySelector(".legend");
  for (const data of legend ? panel.querySelectorAll(".nsewdrag") : []) {
    if (depth(corners(legend), corners(data)) > 1) faults.push(`${where}: the legend is over the data`);
  }
}
const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode, node = text.parentElement;
  if (!text.textContent.trim() || node.closest(".plot, option, select") || !visible(node)) continue;
  const ground = behind(node), ratio = contrast(over(rgb(getComputedStyle(node).color), ground), ground);
  if (ratio < 4.5) faults.push(`"${text.textContent.trim().slice(0, 40)}" has contrast ${ratio.toFixed(2)}`);
  const cell = node.closest("td, th");
  if (!cell) continue;
  const range = document.createRange();
  range.selectNodeContents(text);
  const part = range.getBoundingClientRect(), whole = cell.getBoundingClientRect();
  if (part.right > whole.right + 1 || part.bottom > whole.bottom + 1) faults.push(`"${text.textContent.trim()}" leaves its cell`);
}
for (const table of document.querySelectorAll("table")) {
  if (visible(table) && !table.closest(".scroll") && table.scrollWidth > table.parentElement.clientWidth + 1) faults.push("a table is wider than its card");
}
const root = document.documentElement;
if (root.scrollWidth > innerWidth) faults.push(`the page is ${root.scrollWidth} px wide`);
for (const part of document.querySelectorAll("h2 + h2, .card:empty, table:not(:has(td)), .plot:empty")) faults.push(`empty: ${part.outerHTML.slice(0, 60)}`);
return {faults: [...new Set(faults)], texts: document.querySelectorAll(".plot svg text").length, cells: document.querySelectorAll("td").length};
