// Plots: the library is unpacked from the page itself; colours are the page's own, light or dark.
const figures = JSON.parse(document.getElementById("figures-data").textContent);
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
// The legend stands below the axis, in rows of columns as wide as its longest name.
function legendHeight(traces, layout, width) {
  const names = [...new Set(traces.filter((t) => t.showlegend !== false && t.type !== "heatmap").map((t) => t.name))];
  if (names.length < 2 || layout.showlegend === false) return 0;
  const columns = Math.max(1, Math.floor((width - 70) / (52 + 7 * Math.max(...names.map((n) => n.length)))));
  return 10 + 20 * Math.ceil(names.length / columns);
}
function lines(text, letters) {
  return text.split(" ").reduce((made, word) => {
    const longer = made.at(-1) + " " + word;
    return longer.trim().length > letters ? [...made, word] : [...made.slice(0, -1), longer.trim()];
  }, [""]);
}
function draw(id) {
  const {panels, choices} = figures[id], group = document.getElementById(id);
  const choice = choices.length ? Number(document.getElementById(id + "-choice").value) : null;
  while (group.children.length < panels.length) group.append(document.createElement("div"));
  panels.forEach((panel, i) => {
    const node = group.children[i], layout = themed(panel.layout);
    if (choice !== null) layout.yaxis.range = range(panels, choice);
    const shown = choice === null ? panel.data : panel.data.filter((trace) => trace.meta === choice);
    node.hidden = !shown.length;
    const bars = shown.filter((trace) => trace.type === "bar" && trace.error_y);
    for (const trace of bars) trace.error_y.color = layout.font.color;
    if (layout.meta) layout.width = Math.max(node.clientWidth, layout.meta.least_width);
    const title = lines(layout.title.text || "", node.clientWidth / 7.5);
    layout.title = {...layout.title, text: title.join("<br>")};
    const across = lines(layout.xaxis.title?.text || "", (node.clientWidth - 70) / 7);
    layout.xaxis.title = {...layout.xaxis.title, text: across.join("<br>")};
    const more = {t: 16 * (title.length - 1), b: 16 * (across.length - 1)};
    layout.margin = {...layout.margin, t: layout.margin.t + more.t, b: layout.margin.b + more.b};
    layout.height += more.t + more.b;
    const room = legendHeight(shown, layout, node.clientWidth);
    layout.margin = {...layout.margin, b: layout.margin.b + room};
    layout.height += room;
    // Where nothing hovers, as on a telephone, the tools would stand over the title for good.
    const tools = matchMedia("(hover: hover)").matches ? "hover" : false;
    Plotly.react(node, shown, layout, {responsive: true, displaylogo: false, displayModeBar: tools});
  });
}
function drawAll() {
  for (const id of Object.keys(figures)) draw(id);
}
const ready = unpack().then(() => {
  for (const [id, {choices}] of Object.entries(figures)) {
    if (choices.length) document.getElementById(id + "-choice").onchange = () => draw(id);
  }
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").onchange = drawAll;
});
