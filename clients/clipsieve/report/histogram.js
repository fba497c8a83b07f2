// Histogram and threshold

const EDGE = 8;  // half of a range input's knob, so that both axes agree
const plot = () => ({width: histogram.clientWidth - 2 * EDGE, height: histogram.clientHeight - 22});
const placeOf = value => EDGE + plot().width * (value - state.column.low) / (state.column.high - state.column.low);

function histogramBins() {
  const {low, high, sorted} = state.column;
  const count = Math.max(20, Math.min(80, Math.round(plot().width / 14)));
  const edges = Array.from({length: count + 1}, (_, place) => low + (high - low) * place / count);
  const below = edges.map((edge, place) => place === count ? sorted.length : countBelow(state.column, edge));
  return edges.slice(0, -1).map((edge, place) => ({from: edge, to: edges[place + 1], count: below[place + 1] - below[place]}));
}

function drawHistogram() {
  const {width, height} = plot();
  if (width <= 0) return;
  const bins = histogramBins();
  const scaled = byId("log").checked ? count => Math.log10(1 + count) : count => count;
  const tallest = Math.max(...bins.map(bin => scaled(bin.count)), 1e-9);
  histogram.replaceChildren();
  for (const bin of bins) {
    const tall = bin.count ? Math.max(2, (height - 14) * scaled(bin.count) / tallest) : 0;
    const bar = svg("rect", {x: placeOf(bin.from) + 0.5, y: height - tall, height: tall, width: Math.max(1, width / bins.length - 1)});
    bar.dataset.middle = (bin.from + bin.to) / 2;
    bar.append(svg("title", {}, `${digits(bin.from)} to ${digits(bin.to)}: ${integer(bin.count)}`));
    histogram.append(bar);
  }
  histogram.append(svg("line", {class: "baseline", x1: EDGE, x2: EDGE + width, y1: height, y2: height}));
  for (let tick = 0; tick <= 5; tick++) {
    const value = state.column.low + (state.column.high - state.column.low) * tick / 5;
    const anchor = tick === 0 ? "start" : tick === 5 ? "end" : "middle";
    histogram.append(svg("text", {x: tick === 0 ? EDGE - 6 : tick === 5 ? EDGE + width + 6 : placeOf(value), y: height + 17, "text-anchor": anchor}, digits(value)));
  }
  for (const limit of state.column.limits) {
    histogram.append(svg("line", {class: "limit", x1: placeOf(limit), x2: placeOf(limit), y1: 0, y2: height}));
  }
  histogram.append(svg("line", {class: "threshold", y1: 0, y2: height}), svg("circle", {class: "grip", cy: 7, r: 7}));
  placeThreshold();
}

function placeThreshold() {
  const {threshold} = state.column;
  for (const bar of histogram.querySelectorAll("rect")) bar.setAttribute("class", Number(bar.dataset.middle) >= threshold ? "above" : "below");
  const line = histogram.querySelector(".threshold");
  if (!line) return;
  const place = placeOf(threshold);
  line.setAttribute("x1", place);
  line.setAttribute("x2", place);
  histogram.querySelector(".grip").setAttribute("cx", place);
}

function setThreshold(value, source) {
  const {low, high} = state.column;
  if (!Number.isFinite(value)) return;
  state.column.threshold = Math.min(high, Math.max(low, value));
  if (source !== "number") byId("threshold-number").value = Number(state.column.threshold.toPrecision(7));
  if (source !== "range") byId("threshold").value = state.column.threshold;
  writeCounts();
  placeThreshold();
  scheduleView();
}

function writeCounts() {
  const {column} = state;
  const all = column.sorted.length;
  const below = countBelow(column, column.threshold);
  const count = (kind, label, number) => element("span", {className: kind}, element("b", {textContent: integer(number)}), ` ${label} (${share(number, all)})`);
  byId("counts").replaceChildren(
    count("above", "at or above", all - below), count("below", "below", below),
    ...column.bandNames.map((name, band) => count("quiet", name, column.bandCounts[band])));
  histogram.setAttribute("aria-label", `Histogram of ${column.title}: ${integer(all)} scores, ${integer(all - below)} at or above the threshold ${digits(column.threshold)}`);
}

