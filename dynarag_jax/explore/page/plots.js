// Plots of the questions found, as SVG. Every mark is a link to the questions behind it.

const SVG = "http://www.w3.org/2000/svg";
const LONGEST = 15;  // as the server counts: longer lists stand together

export function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const name = (k) => (k < 0 ? "?" : k >= LONGEST ? `${LONGEST}+` : `${k}`);
export const span = (k) => (k < 0 ? "unknown" : k >= LONGEST ? `${LONGEST}-` : `${k}`);
const short = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${Math.round(n / 1e3)}k`
  : n.toLocaleString("en"));

function canvas(width, height, label) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
    "aria-label": label });
}

function marked(link, label, ...children) {
  const node = s("a", { href: link, "aria-label": label }, ...children);
  node.append(s("title", {}, label));
  return node;
}

// Needed k across, chosen k upward; shares within a needed k, since that is what is compared.
// Both sides have the same columns and rows.
export function matrix(side, letter, both, link) {
  const cells = both.flatMap((one) => one.cells);
  const columns = [...new Set(cells.map(([n]) => n))].sort((x, y) => x - y);
  const top = Math.max(...cells.map(([, k]) => k), 1);
  const sums = new Map();
  for (const [n, , count] of side.cells) sums.set(n, (sums.get(n) || 0) + count);
  const width = 44, height = 26, left = 34, below = 34;
  const plot = canvas(left + columns.length * width + 4, (top + 1) * height + below + 4,
    "chosen k against needed k");
  const y = (k) => (top - k) * height + 2;
  for (let k = 0; k <= top; k++) {
    plot.append(s("text", { x: left - 8, y: y(k) + height / 2 + 4, "text-anchor": "end",
      class: "label" }, name(k)));
  }
  columns.forEach((n, i) => {
    plot.append(s("text", { x: left + (i + 0.5) * width, y: (top + 1) * height + 17,
      "text-anchor": "middle", class: "label" }, name(n)));
    for (let k = 0; k <= top; k++) {
      plot.append(s("rect", { x: left + i * width + 1, y: y(k) + 1, width: width - 2,
        height: height - 2, class: "empty" }));
    }
  });
  for (const [n, k, count] of side.cells) {
    const i = columns.indexOf(n), share = count / sums.get(n);
    const percent = share < 0.005 ? "<1" : `${Math.round(100 * share)}`;
    const label = `needed ${name(n)}, chosen ${name(k)}: ${count.toLocaleString("en")} lists, ` +
      `${percent} % of those that need ${name(n)}`;
    plot.append(marked(link({ needed: span(n), [`${letter}k`]: span(k) }), label,
      s("rect", { x: left + i * width + 1, y: y(k) + 1, width: width - 2, height: height - 2,
        class: `fill-${letter}`, "fill-opacity": (0.06 + 0.94 * share).toFixed(3) }),
      s("text", { x: left + (i + 0.5) * width, y: y(k) + height / 2 + 4, "text-anchor": "middle",
        class: share > 0.55 ? "on" : "" }, percent)));
    if (n === k) {
      plot.append(s("rect", { x: left + i * width, y: y(k), width, height, class: "diagonal",
        "pointer-events": "none" }));
    }
  }
  plot.append(s("text", { x: left + columns.length * width / 2, y: (top + 1) * height + 31,
    "text-anchor": "middle", class: "label" }, "needed k"));
  plot.append(s("text", { x: 10, y: (top + 1) * height / 2, class: "label",
    transform: `rotate(-90 10 ${(top + 1) * height / 2})`, "text-anchor": "middle" }, "chosen k"));
  return plot;
}

// Bars upward from the bottom: [name, height, label, link] each.
function bars(rows, most, cls, format, axis) {
  const width = 44, high = 120, left = 6;
  const plot = canvas(left * 2 + rows.length * width, high + 50, axis);
  rows.forEach(([label, value, count, about, link], i) => {
    const height = most > 0 ? Math.max((Math.max(value, 0) / most) * high, 1) : 1;
    const x = left + i * width;
    plot.append(marked(link, about,
      s("rect", { x, y: 0, width, height: high + 18, "fill-opacity": 0 }),
      s("rect", { x: x + 4, y: high + 16 - height, width: width - 8, height, class: cls,
        "fill-opacity": count === null ? 1 : 0.8 })));
    plot.append(s("text", { x: x + width / 2, y: high + 12 - height, "text-anchor": "middle",
      "pointer-events": "none" }, format(value)));
    plot.append(s("text", { x: x + width / 2, y: high + 29, "text-anchor": "middle",
      class: "label" }, label));
  });
  plot.append(s("line", { x1: left, x2: left + rows.length * width, y1: high + 16.5, y2: high + 16.5,
    class: "axis" }));
  plot.append(s("text", { x: left + rows.length * width / 2, y: high + 45, "text-anchor": "middle",
    class: "label" }, axis));
  return plot;
}

export function valueByK(side, letter, what, most, link) {
  const rows = side.by_k.map(([k, count, mean]) => [name(k), mean, count,
    `k = ${name(k)}: mean ${what} ${mean.toFixed(3)} over ${count.toLocaleString("en")} lists`,
    link({ [`${letter}k`]: span(k) })]);
  return bars(rows, most, `fill-${letter}`, (v) => v.toFixed(2), "chosen k");
}

export function kChange(compared, link) {
  const most = Math.max(...compared.k_change.map(([, count]) => count));
  const rows = compared.k_change.map(([step, count]) => [step > 0 ? `+${step}` : `${step}`, count,
    null, `${count.toLocaleString("en")} lists ${step === 0 ? "of the same length"
      : `${Math.abs(step)} ${step < 0 ? "shorter" : "longer"}`}`,
    link({ change: step < 0 ? "shorter" : step > 0 ? "longer" : "even" })]);
  return bars(rows, most, "fill-b", short, "change of k");
}
