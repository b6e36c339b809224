"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const laps = ["#1f5fa8", "#c2571a", "#2f7d4f", "#8a4fa3", "#a8201a", "#4d6b7a", "#7a6a1f", "#b0427f"];
  // Plotly reads some HTML in its labels; what was measured may be called anything.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const units = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];
  const unitOf = (values) => {
    const most = Math.max(...values.flat(3).filter((value) => value !== null).map(Math.abs), 0);
    return units.find(([, size]) => most >= size) || units[3];
  };
  const scaled = (values, size) => values.map((value) => (value === null ? null : value / size));
  const hover = (value, unit) => `${value === null ? "-" : value.toLocaleString("en")} B`;

  const draw = (place, traces, across, up, extra = {}) => {
    const ink = colour("--ink"), line = colour("--line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
      margin: { l: 60, r: 10, t: 10, b: 45 }, height: extra.height || 300, hovermode: "closest",
      legend: { orientation: "h", y: 1.12 }, showlegend: traces.length > 1 && traces.length < 20,
      shapes: extra.shapes || [],
      xaxis: { ...axis, title: { text: across }, ...(extra.xaxis || {}) },
      yaxis: { ...axis, title: { text: up }, ...(extra.yaxis || {}) },
    };
    Plotly.react(place, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  const overlaid = (place, series, name) => {
    const across = plain(name.length > 24 ? `${name.slice(0, 21)}...` : name);
    const [unit, size] = unitOf(series);
    const traces = series.map((values, lap) => ({
      x: values.map((_, index) => index), y: scaled(values, size), name: `lap ${lap}`, mode: "lines+markers",
      line: { color: laps[lap % laps.length], width: 1.5 }, marker: { size: 5 },
      text: values.map((value) => hover(value)), hovertemplate: `lap ${lap}, ${across} %{x}: %{text}<extra></extra>`,
    }));
    const every = Math.max(1, Math.ceil(Math.max(...series.map((values) => values.length)) / 10));
    draw(place, traces, across, unit, { xaxis: { tick0: 0, dtick: every } });  // there is no sample 0.5
  };

  const charts = {
    samples: (place, of) => overlaid(place, data.recordings[of.recording].channels[of.channel], "sample"),
    marks: (place, of) => overlaid(place, data.recordings[of.recording].marks[of.mark][of.channel], of.mark),
    lines: (place, of) => {
      const lines = [...data.recordings[of.recording].lines].reverse();
      const [unit, size] = unitOf(lines.map((line) => line[1]));
      const trace = {
        type: "bar", orientation: "h", x: scaled(lines.map((line) => line[1]), size), marker: { color: laps[0] },
        y: lines.map((line, index) => index), text: lines.map((line) => hover(line[1])), textposition: "none",
        hovertemplate: "%{text}<extra></extra>",
      };
      const most = Math.max(12, Math.min(48, Math.floor(place.clientWidth / 16)));  // letters: half of the chart
      const short = (text) => (text.length > most ? `...${text.slice(3 - most)}` : text);
      const ticks = { tickvals: trace.y, ticktext: lines.map((line) => plain(short(line[0]))) };
      draw(place, [trace], unit, "", { yaxis: ticks, height: 90 + 26 * lines.length });
    },
    history: (place, of) => {
      const series = data.history[of.series];
      const values = series.figures[of.figure], runs = series.runs;
      const [unit, size] = unitOf([values]);
      const label = (index) => plain(`run ${runs[index][0]}, ${runs[index][1]} ${runs[index][2]}`);
      const x = values.map((_, index) => index);
      const traces = [{
        x, y: scaled(values, size), name: of.figure, mode: runs.length > 150 ? "lines" : "lines+markers",
        line: { color: laps[0], width: 1.5 }, text: x.map((index) => `${label(index)}<br>${hover(values[index])}`),
        hovertemplate: "%{text}<extra></extra>",
      }];
      const accepted = x.filter((index) => runs[index][3]);
      if (accepted.length) {
        traces.push({
          x: accepted, y: accepted.map((index) => (values[index] === null ? null : values[index] / size)),
          name: "accepted", mode: "markers", marker: { symbol: "diamond", size: 9, color: laps[2] },
          text: accepted.map((index) => `accepted: ${label(index)}`), hovertemplate: "%{text}<extra></extra>",
        });
      }
      const steps = series.steps[of.figure] || [];
      const shapes = steps.map(([index]) => ({
        type: "line", x0: index - 0.5, x1: index - 0.5, yref: "paper", y0: 0, y1: 1,
        line: { color: colour("--bad"), width: 1.5, dash: "dot" },
      }));
      const every = Math.max(1, Math.ceil(runs.length / 10));
      const shown = x.filter((index) => index % every === 0);
      const ticks = { tickvals: shown, ticktext: shown.map((index) => plain(runs[index][0])) };
      draw(place, traces, "run", unit, { shapes, xaxis: ticks });
    },
  };

  const chosen = (place) => {
    const of = { ...place.dataset };
    const select = document.getElementById(`${place.id}-select`);
    if (select) of[place.dataset.chosen] = select.value;
    return of;
  };
  const drawn = new Set();
  const show = (place) => {
    drawn.add(place);
    try {
      charts[place.dataset.chart](place, chosen(place));
    } catch (error) {  // the other charts are drawn all the same
      place.textContent = `not drawn: ${error}`;
    }
  };
  // A chart is drawn once somebody can see it: a page may hold hundreds.
  const showOpen = () => {
    for (const place of document.querySelectorAll(".chart")) {
      if (!drawn.has(place) && !place.closest("details:not([open])")) show(place);
    }
  };
  document.addEventListener("toggle", showOpen, true);
  for (const select of document.querySelectorAll("select")) {
    select.addEventListener("change", () => show(document.getElementById(select.id.replace(/-select$/, ""))));
  }
  const settle = () => {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} page`);
    drawn.forEach(show);
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    settle();
  });
  preferred.addEventListener("change", settle);
  settle();
  showOpen();
})();
