"use strict";
// Draws every figure from the JSON that follows it, and keeps text and grid in the page's colours.
(() => {
  const plots = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const theme = (layout) => {
    const update = {
      "font.color": colour("--muted"),
      "hoverlabel.bgcolor": colour("--panel"),
      "hoverlabel.bordercolor": colour("--axis"),
      "hoverlabel.font.color": colour("--ink"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      update[`${axis}.gridcolor`] = colour("--grid");
      update[`${axis}.zerolinecolor`] = colour("--axis");
      update[`${axis}.linecolor`] = colour("--axis");
    }
    return update;
  };

  const paint = (plot) => {
    if (plot.data.every((trace) => trace.type === "heatmap")) {
      const scale = [[0, colour("--away")], [0.5, colour("--neutral")], [1, colour("--towards")]];
      return Plotly.update(plot, { colorscale: [scale] }, theme(plot.layout));
    }
    const bars = [...plot.data.keys()].filter((i) => plot.data[i].error_x);
    const update = bars.length ? { "error_x.color": colour("--ink") } : {};
    return Plotly.update(plot, update, theme(plot.layout), bars);
  };
  const repaint = () => plots.forEach(paint);

  for (const data of document.querySelectorAll("script.figure")) {
    const plot = data.previousElementSibling;
    const { data: traces, layout } = JSON.parse(data.textContent);
    const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
    plots.push(plot);
    Plotly.newPlot(plot, traces, layout, config).then(paint);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  matchMedia("print").addEventListener("change", repaint);
})();
