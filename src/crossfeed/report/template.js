"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const TOKEN = "\ue000";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();

  // Replace colour tokens by the colours of a palette.
  const paint = (spec, palette) => {
    if (typeof spec === "string") return spec[0] === TOKEN ? palette[spec.slice(1)] : spec;
    if (Array.isArray(spec)) return spec.map((part) => paint(part, palette));
    if (spec && typeof spec === "object") return Object.fromEntries(Object.entries(spec).map(([key, value]) => [key, paint(value, palette)]));
    return spec;
  };

  // What must follow the width of the page: room for labels, columns of a legend.
  const configFor = (width) => ({
    ...data.config,
    axisY: { labelLimit: Math.round(Math.max(84, Math.min(330, width * 0.38))) },
    legend: { ...data.config.legend, gradientLength: Math.round(Math.min(280, width * 0.5)) },
  });
  const LETTER = 7.6, SYMBOL = 30;
  const fitLegends = (spec, width) => {
    if (Array.isArray(spec)) return spec.map((part) => fitLegends(part, width));
    if (!spec || typeof spec !== "object") return spec;
    const fitted = Object.fromEntries(Object.entries(spec).map(([key, value]) => [key, key === "values" ? value : fitLegends(value, width)]));
    const color = fitted.color;
    if (color && color.type === "nominal" && color.legend !== null) {
      const widths = color.scale.domain.map((name) => SYMBOL + LETTER * name.length), widest = Math.max(...widths);
      const room = 0.78 * width, whole = widths.reduce((a, b) => a + b, 0) <= room;
      const columns = whole ? 0 : Math.max(1, Math.floor(room / widest));
      const labelLimit = Math.max(80, Math.floor(room / (columns || 1)) - SYMBOL);
      fitted.color = { ...color, legend: { ...color.legend, columns, labelLimit } };
    }
    return fitted;
  };

  let drawing = 0;
  async function draw() {
    const turn = ++drawing;
    const palette = data.palettes[dark.matches ? "dark" : "light"];
    document.documentElement.style.setProperty("--chart-ground", palette.page);
    for (const [key, spec] of Object.entries(data.charts)) {
      const place = document.getElementById("chart-" + key);
      const width = place.clientWidth, config = configFor(width);
      const options = {
        mode: "vega-lite",
        renderer: "svg",
        actions: false,
        ast: true,
        tooltip: { theme: "custom" },
        config: paint(config, palette),
      };
      try {
        const result = await vegaEmbed(place, paint(fitLegends(spec, width), palette), options);
        if (views.has(key)) views.get(key).finalize();
        views.set(key, result);
        place.style.minHeight = "";
      } catch (error) {
        place.textContent = "This chart could not be drawn; its numbers stand in the table.";
        console.error(error);
      }
      if (turn !== drawing) return;
      await new Promise((next) => setTimeout(next));
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  // The width at which labels are cut depends on the page's width, so a large change draws anew.
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (Math.abs(innerWidth - width) < 60) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
  dark.addEventListener("change", draw);
  draw();

  // The list of contents is open beside the text, folded above it.
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 1180px)");
  const unfold = () => { contents.open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();

  // Look up one model among many.
  const index = data.search;
  if (!index) return;
  const box = document.getElementById("search-box");
  const list = document.getElementById("search-list");
  const shown = document.getElementById("search-model");
  const folded = index.names.map((name) => name.toLowerCase());
  const SHOWN = 12;

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const write = (value, sign) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    const body = size && (size < 1e-4 || size >= 1e6) ? size.toExponential(2) : String(Number(size.toPrecision(3)));
    return (value < 0 ? "−" : sign && value > 0 ? "+" : "") + body;
  };
  const verdict = (code) => {
    const [symbol, word, style] = index.verdicts[code] || ["", "–", "none"];
    return make("span", (symbol + " " + word).trim(), "verdict " + style);
  };

  function influences(title, flat) {
    const part = make("div");
    part.append(make("h5", title));
    if (!flat.length) {
      part.append(make("p", "none", "note"));
      return part;
    }
    const table = make("table"), body = make("tbody");
    for (let at = 0; at < flat.length; at += 3) {
      const row = make("tr"), name = make("th"), value = make("td", write(flat[at + 1], true), "num"), mark = make("td");
      name.scope = "row";
      const button = make("button", index.names[flat[at]], "link");
      button.type = "button";
      button.addEventListener("click", () => show(flat[at]));
      name.append(button);
      value.dataset.value = flat[at + 1];
      mark.append(verdict(flat[at + 2]));
      row.append(name, value, mark);
      body.append(row);
    }
    table.append(body);
    part.append(table);
    return part;
  }

  function show(model) {
    const found = make("div", undefined, "found");
    found.dataset.model = model;
    found.append(make("h4", index.names[model]));
    const line = make("p");
    if (index.self[model] === null) {
      line.textContent = "It has no picked data, so there is no curation to raise.";
    } else {
      line.append("Self-influence ", make("strong", write(index.self[model], true)), " ", verdict(index.verdict[model]),
        "; alone it would be ", write(index.isolated[model], true), ".");
    }
    const two = make("div", undefined, "two");
    two.append(
      influences("What raising its curation does to others (strongest 20)", index.out[model]),
      influences("Whose curation affects it (strongest 20)", index.in[model]),
    );
    found.append(line, two);
    shown.replaceChildren(found);
  }

  function search() {
    const query = box.value.trim().toLowerCase();
    const matches = [];
    if (query) {
      folded.forEach((name, model) => { if (name.includes(query)) matches.push(model); });
      matches.sort((a, b) => folded[a].indexOf(query) - folded[b].indexOf(query) || a - b);
    }
    list.replaceChildren(...matches.slice(0, SHOWN).map((model) => {
      const item = make("li"), button = make("button", index.names[model]);
      button.type = "button";
      button.addEventListener("click", () => show(model));
      item.append(button);
      return item;
    }));
    if (matches.length > SHOWN) list.append(make("li", `and ${matches.length - SHOWN} more`, "note"));
    if (query && !matches.length) list.append(make("li", "No model has this in its name.", "note"));
    return matches;
  }
  box.addEventListener("input", () => { const matches = search(); if (matches.length === 1) show(matches[0]); });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const matches = search();
    if (matches.length) show(matches[0]);
  });
  let worst = -1;
  index.self.forEach((value, model) => { if (value !== null && (worst < 0 || value < index.self[worst])) worst = model; });
  if (worst >= 0) show(worst);
})();
