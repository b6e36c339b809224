"use strict";
// The page is whole without this: it adds the exact figure under the pointer, the theme's button, and folds that open.
(() => {
  const keys = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;

  // "4096x20 8192", as charts.py packs figures; "-" is none.
  const unpacked = (text) => text.split(" ").filter(Boolean).flatMap((word) => {
    const [value, times] = word.split("x");
    return Array(Number(times || 1)).fill(value === "-" ? null : Number(value));
  });

  // What a point of a chart is called: its run in the history, or its lap and sample.
  const lapsOf = (plot) => {
    const names = unpacked(plot.dataset.laps).flatMap((length, lap) =>
      Array.from({ length }, (_, index) => `lap ${lap}, ${plot.dataset.word} ${index}`));
    return { names, at: names.map((_, index) => (100 * (index + 0.5)) / names.length) };
  };
  const runsOf = (plot) => {
    const { runs, at } = keys[plot.dataset.key];
    return { names: runs.map((run) => `run ${run}`), at };
  };

  const momentsOf = (plot) => {
    const at = unpacked(plot.dataset.at), operations = Math.max(1, Number(plot.dataset.operations));
    return {
      names: at.map((count) => `after operation ${count.toLocaleString("en")}`),
      at: at.map((count) => (100 * count) / operations),
    };
  };

  // A timeline's bands, from the lowest: up and down go through them, Enter or a click opens the line of one.
  const bandsOf = (plot) => {
    const figure = plot.closest("figure"), lines = figure.querySelectorAll(".made > li");
    const chosen = figure.querySelector(".chosen");
    const events = [["made by", unpacked(plot.dataset.began)], ["freed, made by", unpacked(plot.dataset.ended)]];
    const bands = [...figure.querySelectorAll(".legend [data-values]")].reverse().map((one) => ({
      name: one.dataset.name, below: Number(one.dataset.below), values: unpacked(one.dataset.values),
      largest: unpacked(one.dataset.largest), bytes: unpacked(one.dataset.bytes),
    }));
    let current = bands.length - 1;
    const said = (index) => `${bands[current].name} ${bands[current].values[index].toLocaleString("en")} B`;
    const item = (text, line) => {
      const paragraph = document.createElement("p");
      paragraph.append(text);
      chosen.append(paragraph, ...(lines[line] ? [...lines[line].cloneNode(true).childNodes] : ["smaller lines"]));
    };
    return {
      said,
      move: (by) => { current = Math.max(0, Math.min(bands.length - 1, current + by)); },
      point: (index, share) => {
        let left = share * Number(plot.dataset.full);
        const under = bands.findIndex((band) => (left -= band.values[index] - band.below) < 0);
        if (under >= 0) current = under;
      },
      open: (index, name) => {
        chosen.replaceChildren();
        const band = bands[current];
        if (band.values[index]) item(`${name}: ${said(index)}, most of it (${band.bytes[index].toLocaleString("en")} B) made by `, band.largest[index]);
        for (const [word, line] of events) if (line[index] >= 0) item(`the operation: ${word} `, line[index]);
        chosen.hidden = !chosen.hasChildNodes();
      },
    };
  };

  const nearest = (places, place) => places.reduce(
    (best, at, index) => (Math.abs(at - place) < Math.abs(places[best] - place) ? index : best), 0);

  // A plot becomes a slider over its points when it is first reached, by the pointer or by the keyboard.
  const read = (plot) => {
    const values = unpacked(plot.dataset.values);
    const { names, at } = plot.dataset.at ? momentsOf(plot) : plot.dataset.laps ? lapsOf(plot) : runsOf(plot);
    const bands = plot.dataset.at ? bandsOf(plot) : null;
    const cursor = document.createElement("span"), output = document.createElement("output");
    cursor.className = "cursor";
    let chosen = values.length - 1;
    const show = (index) => {
      chosen = Math.max(0, Math.min(values.length - 1, index));
      const value = values[chosen];
      const text = `${names[chosen]}: ${value === null ? "not measured" : `${value.toLocaleString("en")} B`}${bands ? `; ${bands.said(chosen)}` : ""}`;
      cursor.style.left = `${at[chosen]}%`;
      output.textContent = text;
      output.style.left = `clamp(-3rem, calc(${at[chosen]}% - 5rem), calc(100% - ${text.length * 0.55}em))`;
      plot.setAttribute("aria-valuenow", chosen);
      plot.setAttribute("aria-valuetext", text);
      plot.append(cursor, output);
    };
    const hide = () => { cursor.remove(); output.remove(); };
    const moves = { ArrowLeft: () => chosen - 1, ArrowRight: () => chosen + 1, Home: () => 0, End: () => values.length - 1 };
    plot.setAttribute("aria-valuemin", 0);
    plot.setAttribute("aria-valuemax", values.length - 1);
    const follow = (event) => {
      const box = plot.getBoundingClientRect(), index = nearest(at, (100 * (event.clientX - box.left)) / box.width);
      if (bands) bands.point(index, 1 - (event.clientY - box.top) / box.height);
      show(index);
    };
    plot.addEventListener("pointermove", follow);
    if (bands) {
      plot.addEventListener("click", (event) => {
        follow(event);
        bands.open(chosen, names[chosen]);
      });
    }
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const by = bands ? { ArrowUp: 1, ArrowDown: -1 }[event.key] : 0;
      if (by) bands.move(by);
      else if (bands && event.key === "Enter") bands.open(chosen, names[chosen]);
      else if (!(event.key in moves)) return;
      event.preventDefault();
      show(event.key in moves ? moves[event.key]() : chosen);
    });
    return show;
  };
  for (const plot of document.querySelectorAll(".plot")) {
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-valuenow", 0);
    plot.setAttribute("aria-valuetext", plot.dataset.at ? "arrow keys go through operations and categories, Enter shows the line" : "arrow keys go through the runs");
    let show = null;
    const begin = (event) => {
      show = show || read(plot);
      if (event.type === "focus") show(Infinity);
    };
    plot.addEventListener("pointerenter", begin);
    plot.addEventListener("focus", begin);
  }

  // A link to something folded opens it; all is open on paper.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    if (target) target.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const fold of folded) fold.open = true;
  });
  window.addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });

  const toggle = document.getElementById("theme");
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
  const settle = () => {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} page`);
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    settle();
  });
  preferred.addEventListener("change", settle);
  toggle.hidden = false;
  settle();
  reveal();
})();
