"use strict";
// Unpacks plotly.js, draws every figure from the JSON that follows it, keeps text and grid in the
// page's colours, shows the examples of the template that is chosen, sorts tables, and opens for the
// printer what is folded.
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
    const maps = [...plot.data.keys()].filter((i) => plot.data[i].type === "heatmap");
    if (maps.length) {
      const scale = [[0, colour("--away")], [0.5, colour("--neutral")], [1, colour("--towards")]];
      return Plotly.update(plot, { colorscale: [scale] }, theme(plot.layout), maps);
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

  // Values in the order that a reader looks for: numbers from the largest, words from A, and what
  // has none last, whichever way round.
  const sorted = (rows, column, upward) => {
    const of = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const numbers = rows.every((row) => of(row) === "" || !Number.isNaN(Number(of(row))));
    const compare = (a, b) => {
      const [x, y] = [of(a), of(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const way = numbers ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
      return upward ? way : -way;
    };
    return [...rows].sort(compare);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    for (const [column, head] of heads.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        for (const each of heads) each.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const body = table.tBodies[0];
        body.append(...sorted([...body.rows], column, order === "ascending"));
      });
    }
  }

  const folded = [];
  addEventListener("beforeprint", () => {
    folded.push(...document.querySelectorAll("details:not([open])"));
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of folded.splice(0)) each.open = false;
  });

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
  if (document.getElementById("plotly")) start().catch(() => {
    for (const plot of document.querySelectorAll(".plot")) {
      plot.textContent = "This browser cannot draw the picture; the numbers are in the tables.";
    }
  });
})();
