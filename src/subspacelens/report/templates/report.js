"use strict";
// Unpacks plotly.js, draws every figure from the JSON that follows it, keeps text and grid in the
// page's colours, and shows the examples of the template that is chosen.
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

  const unpacked = async (packed) => {
    const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const figures = [...document.querySelectorAll("script.figure")];
  const told = (data) => data.type === "application/json" ? data.textContent : unpacked(data);

  const draw = (texts) => {
    for (const [number, text] of texts.entries()) {
      const plot = figures[number].previousElementSibling;
      const { data: traces, layout } = JSON.parse(text);
      const config = {
        displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false,
      };
      plots.push(plot);
      Plotly.newPlot(plot, traces, layout, config).then(paint);
    }
  };

  const only = (section, template) => {
    const chosen = (other) => template === "" || other === template;
    const cards = [...section.querySelectorAll("[data-template]")];
    for (const card of cards) card.hidden = !chosen(card.dataset.template);
    section.querySelector(".no-example").hidden = cards.some((card) => !card.hidden);
    const plot = section.querySelector(".plot");
    if (!plot || !plot.data) return;
    const points = plot.data.map((trace) =>
      template === "" || !trace.customdata
        ? null
        : [...trace.customdata.keys()].filter((i) => chosen(trace.customdata[i][1])));
    Plotly.restyle(plot, { selectedpoints: points });
  };

  for (const filter of document.querySelectorAll(".filter")) {
    const select = filter.querySelector("select");
    filter.hidden = false;
    select.addEventListener("change", () => only(filter.closest(".examples"), select.value));
  }

  const start = async () => {
    const script = document.createElement("script");
    const [plotly, ...texts] = await Promise.all(
      [unpacked(document.getElementById("plotly")), ...figures.map(told)]);
    script.textContent = plotly;
    document.head.append(script);
    draw(texts);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    matchMedia("print").addEventListener("change", repaint);
  };
  start().catch(() => {
    for (const plot of document.querySelectorAll(".plot")) {
      plot.textContent = "This browser cannot draw the picture; the numbers are in the tables.";
    }
  });
})();
