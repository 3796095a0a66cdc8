// Plots: the library is unpacked from the page itself; colours are the page's own, light or dark.
const figures = JSON.parse(document.getElementById("figures-data").textContent);
const pen = document.createElement("canvas").getContext("2d");
async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
function themed(layout) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {gridcolor: colour("--line"), zerolinecolor: colour("--soft"), linecolor: colour("--soft")};
  const axes = ["xaxis", "yaxis"].map((name) => [name, {...layout[name], ...axis}]);
  const clear = "rgba(0,0,0,0)";
  return {...layout, ...Object.fromEntries(axes), paper_bgcolor: clear, plot_bgcolor: clear,
    font: {...layout.font, color: colour("--ink")}};
}
// All panels of what is chosen have one range, so that they can be compared.
function range(panels, choice) {
  const ys = panels.flatMap((p) => p.data.filter((t) => t.meta === choice).flatMap((t) => t.y)).filter((y) => y !== null);
  const low = Math.min(...ys), high = Math.max(...ys), room = (high - low || 1) * 0.05;
  return [low - room, high + room];
}
// A heat-map of many columns stands in rows, as text does; where not even 24 fit beside each other, it scrolls.
function rows(panel, width) {
  const columns = panel.layout.meta?.columns;
  if (!columns) return [panel];
  const count = Math.ceil(columns / Math.max(24, Math.floor((width - 230) / 17))), each = Math.ceil(columns / count);
  return Array.from({length: count}, (_, i) => {
    const xaxis = {...panel.layout.xaxis, range: [i * each - 0.5, (i + 1) * each - 0.5]};
    return {data: panel.data, layout: {...panel.layout, xaxis, width: Math.max(width, 230 + 17 * each)}};
  });
}
// The legend stands below the axis: name by name if all are in one row or grouped, else in columns as wide as the
// longest name.
function legendHeight(traces, layout) {
  const names = [...new Set(traces.filter((t) => t.showlegend !== false && t.type !== "heatmap").map((t) => t.name))];
  if (names.length < 2 || layout.showlegend === false) return 0;
  pen.font = `${layout.font.size}px ${layout.font.family}`;
  const parts = names.map((name) => name.split("<br>"));
  const widths = parts.map((lines) => 42 + Math.max(...lines.map((line) => pen.measureText(line).width)));
  const room = layout.width - layout.margin.l - layout.margin.r, sum = widths.reduce((one, other) => one + other);
  const own = sum <= room || traces.some((t) => t.legendgroup), widest = Math.max(...widths);
  let height = 10, x = 0, row = 0;
  parts.forEach((lines, i) => {
    const width = own ? widths[i] : widest;
    if (x && x + width > room) [height, x, row] = [height + row, 0, 0];
    [x, row] = [x + width, Math.max(row, 4 + 16 * lines.length)];
  });
  return height + row;
}
function lines(text, letters) {
  return text.split(" ").reduce((made, word) => {
    const longer = made.at(-1) + " " + word;
    return longer.trim().length > letters ? [...made, word] : [...made.slice(0, -1), longer.trim()];
  }, [""]);
}
function draw(id) {
  const {panels: given, choices} = figures[id], group = document.getElementById(id);
  const choice = choices.length ? Number(document.getElementById(id + "-choice").value) : null;
  const panels = given.flatMap((panel) => rows(panel, group.clientWidth));
  while (group.children.length < panels.length) group.append(document.createElement("div"));
  [...group.children].forEach((node, i) => { node.hidden = !panels[i]?.data.some((t) => choice === null || t.meta === choice); });
  // Panels beside each other begin at one height, also where one title needs more lines.
  const titles = panels.map(({layout}, i) => lines(layout.title.text || "", group.children[i].clientWidth / 7.5));
  const above = 16 * (Math.max(...titles.map((title, i) => group.children[i].hidden ? 1 : title.length)) - 1);
  panels.forEach((panel, i) => {
    const node = group.children[i], layout = themed(panel.layout);
    if (node.hidden) return;
    layout.width ??= node.clientWidth;
    if (choice !== null) layout.yaxis.range = range(panels, choice);
    const wide = (layout.width - 120) / 7, ink = layout.font.color;
    const shown = panel.data.filter((t) => choice === null || t.meta === choice).map((t) => ({...t,
      ...(t.name && {name: lines(t.name, wide).join("<br>")}),
      ...(t.type === "bar" && {error_x: {...t.error_x, color: ink}, error_y: {...t.error_y, color: ink}})}));
    layout.title = {...layout.title, text: titles[i].join("<br>")};
    const across = lines(layout.xaxis.title?.text || "", (layout.width - 70) / 7);
    layout.xaxis.title = {...layout.xaxis.title, text: across.join("<br>")};
    const below = 16 * (across.length - 1) + legendHeight(shown, layout);
    layout.margin = {...layout.margin, t: layout.margin.t + above, b: layout.margin.b + below};
    layout.height += above + below;
    // Where nothing hovers, as on a telephone, the tools would stand over the title for good.
    const tools = matchMedia("(hover: hover)").matches ? "hover" : false;
    node.tabIndex = layout.width > node.clientWidth ? 0 : -1; // what scrolls can be reached by keyboard
    Plotly.react(node, shown, layout, {displaylogo: false, displayModeBar: tools});
  });
}
function drawAll() {
  for (const id of Object.keys(figures)) draw(id);
}
// Paper has its own width and is light; style.css says what `paper` changes.
function onPaper(printed) {
  document.documentElement.classList.toggle("paper", printed);
  drawAll();
}
const ready = unpack().then(() => {
  for (const [id, {choices}] of Object.entries(figures)) {
    if (choices.length) document.getElementById(id + "-choice").onchange = () => draw(id);
  }
  drawAll();
  const main = document.querySelector("main");
  let drawn = main.clientWidth, waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (main.clientWidth !== drawn) { drawn = main.clientWidth; drawAll(); } }, 150);
  });
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  matchMedia("(prefers-color-scheme: dark)").onchange = drawAll;
});
