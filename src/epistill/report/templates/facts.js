// What a test reads: how many plots there are, how many drew marks in every panel, every request made.
ready.then(() => {
  const drawn = (panel) => panel.querySelector(".points path, .point path, .js-line, .heatmaplayer image, .fills path") !== null;
  const panels = (plot) => [...plot.children].filter((panel) => !panel.hidden);
  document.body.dataset.plots = Object.keys(figures).length;
  document.body.dataset.plotsWithData = [...document.querySelectorAll(".plot")].filter(
    (plot) => panels(plot).length && panels(plot).every(drawn)).length;
  document.body.dataset.requests = performance.getEntriesByType("resource").length;
});
