// Rates and latencies of the last hours, with axes, units and values under the pointer. Drawn by uPlot.

import { byId, bytes, element, money, span, write } from "/page/service.js";
import { overview } from "/page/overview.js";

const RANGES = { "15 min": 900, "1 h": 3600, "6 h": 6 * 3600 };
const HEIGHT = 150;
let range = 3600;
const charts = new Map();

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value) => (value == null ? "–" : value < 10 ? String(Math.round(value * 10) / 10) : String(Math.round(value)));
const took = (value) => (value == null ? "–" : value === 0 ? "0" : span(value));
const size = (value) => (value == null ? "–" : value === 0 ? "0" : bytes(value));
const dollars = (value) => (value == null ? "–" : value <= 0 ? "0" : value < 0.01 ? `$${Number(value.toPrecision(1))}` : money(value));
/** A sum of a bucket as that of a minute. */
const perMinute = (values, { bucket_seconds: length }) => values.map((value) => (value * 60) / length);
const asIs = (values) => values;

/** Lines of each chart: field, name, color, and how its values are read. */
export const CHARTS = {
  rates: {
    title: "Turns per minute", format: number, read: perMinute,
    lines: [["answered", "answered", "--idle"], ["failed", "failed", "--bad"], ["refused", "refused", "--change"]],
  },
  latencies: {
    title: "Time of a turn and of a start", format: took, read: asIs,
    lines: [["turn_p50", "turn, median", "--busy"], ["turn_p95", "turn, 95 %", "--bad"], ["ready_p50", "start, median", "--accent"]],
  },
  children: {
    title: "Children", format: number, read: asIs,
    lines: [["children", "alive", "--idle"], ["busy", "busy", "--busy"], ["waiting", "starts that wait", "--bad"]],
  },
  memory: { title: "Memory of all sessions", format: size, read: asIs, lines: [["memory_bytes", "memory", "--busy"]] },
  spent: { title: "Spent per minute, all users", format: dollars, read: perMinute, lines: [["spent_usd", "spent", "--busy"]] },
};

function data({ lines, read }) {
  const history = overview.history;
  const from = history.ends_at.at(-1) - range;
  const first = Math.max(0, history.ends_at.findIndex((at) => at >= from));
  const cut = (values) => values.slice(first);
  return [cut(history.ends_at), ...lines.map(([field]) => read(cut(history[field]), history))];
}

function make(name, box) {
  const { lines, format } = CHARTS[name];
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 }, font: "12px system-ui" };
  const series = lines.map(([, label, stroke]) => ({
    label, stroke: color(stroke), width: 1.5, spanGaps: false, points: { size: 4 }, value: (_, value) => format(value),
  }));
  const options = {
    width: Math.max(200, box.clientWidth), height: HEIGHT, series: [{ value: "{HH}:{mm}:{ss}" }, ...series],
    axes: [{ ...axis, values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
      { ...axis, size: 62, values: (_, values) => values.map(format) }],
    scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    cursor: { y: false, drag: { x: false, y: false } },
  };
  return new uPlot(options, data(CHARTS[name]), box);
}

/** Draws the charts of a container: each element with `data-chart`. */
export function show() {
  const is = overview.is && overview.history.ends_at.length > 1;
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const name = figure.dataset.chart;
    figure.hidden = !is;
    const box = figure.querySelector(".plot");
    if (!is || !figure.checkVisibility()) continue;
    const chart = charts.get(name);
    if (chart?.box === box) chart.plot.setData(data(CHARTS[name]));
    else charts.set(name, { box, plot: make(name, box), width: box.clientWidth });
    write(figure.querySelector(".summed"), said(CHARTS[name]));
  }
  byId("ranges").hidden = !overview.is;
  byId("hours-empty").hidden = !overview.is || is;
}

/** What a chart shows, in words: its last values. */
function said({ lines, read, format }) {
  const history = overview.history;
  const last = (field) => read(history[field].slice(-1), history)[0];
  return lines.map(([field, label]) => `${label} ${format(last(field))}`).join(", ");
}

function redraw() {
  for (const [name, { plot }] of charts) {
    plot.destroy();
    charts.delete(name);
  }
  show();
}

export function prepare() {
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const caption = element("figcaption", CHARTS[figure.dataset.chart].title);
    caption.append(" ", element("span", "", "summed quiet"));
    figure.append(caption, element("div", "", "plot"));
  }
  for (const [label, seconds] of Object.entries(RANGES)) {
    const button = element("button", label);
    button.type = "button";
    button.ariaPressed = String(seconds === range);
    button.addEventListener("click", () => {
      range = seconds;
      for (const other of byId("ranges").children) other.ariaPressed = String(other === button);
      show();
    });
    byId("ranges").append(button);
  }
  let later;
  addEventListener("resize", () => {
    clearTimeout(later);
    later = setTimeout(() => {
      const isSame = [...charts.values()].every(({ box, width }) => box.clientWidth === width);
      if (!isSame) redraw();
    }, 200);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
