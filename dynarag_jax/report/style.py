"""The style sheet: one for the page, of which the plots' part also goes into standalone figures.

The colors are Okabe and Ito's, which people with any kind of color vision can tell apart, lightened
for dark pages; shapes and words say the same again.
"""

COLORS = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1c1e21; --quiet: #5d6369; --faint: #e3e3de; --wash: #f4f4ef;
  --blue: #0072b2; --orange: #c05200; --green: #00795a; --pink: #b0578c; --gray: #62686e;
  --gold: #9a7400; --sky: #2b8cc4; --heat: #0072b2; --heat-ink: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e6e6e1; --quiet: #a0a6ac; --faint: #33373c; --wash: #1f2226;
    --blue: #56b4e9; --orange: #f0944d; --green: #3ec39a; --pink: #dd9cc4; --gray: #a4aab0;
    --gold: #e0b93c; --sky: #8ccdf2; --heat: #56b4e9; --heat-ink: #101214;
  }
}
"""

PLOTS = """
svg.plot { display: block; font-family: var(--sans, system-ui, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, "Liberation Sans", sans-serif); font-variant-numeric: tabular-nums; }
.plot text { fill: var(--ink); font-size: 11.5px; }
.plot .title { font-size: 13px; font-weight: 600; }
.plot .label { fill: var(--quiet); font-size: 11.5px; }
.plot .tick { fill: var(--quiet); font-size: 11px; }
.plot .name { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.plot .strong { font-weight: 600; }
.plot .grid { stroke: var(--faint); stroke-width: 1; }
.plot .axis { stroke: var(--quiet); stroke-width: 1; }
.plot .needed { stroke: var(--green); stroke-width: 1.5; stroke-dasharray: 2 3; }
.plot .leader { stroke: var(--quiet); stroke-width: 0.75; }
.plot .line, .plot .raw, .plot .chain { fill: none; stroke-linejoin: round; }
.plot .line { stroke-width: 2; }
.plot .raw { stroke-width: 1; opacity: 0.28; }
.plot .chain { stroke-width: 1.25; opacity: 0.55; }
.plot .s0 { stroke: var(--blue); } .plot .s1 { stroke: var(--orange); stroke-dasharray: 7 3; }
.plot .s2 { stroke: var(--green); stroke-dasharray: 2 3; }
.plot .s3 { stroke: var(--pink); stroke-dasharray: 9 3 2 3; }
.plot .s4 { stroke: var(--gold); stroke-dasharray: 4 2; }
.plot .s5 { stroke: var(--gray); stroke-dasharray: 1 2; }
.plot .raw { stroke-dasharray: none; }
.plot .dot { stroke: none; }
.plot .dot.s0 { fill: var(--blue); } .plot .dot.s1 { fill: var(--orange); }
.plot .dot.s2 { fill: var(--green); } .plot .dot.s3 { fill: var(--pink); }
.plot .dot.s4 { fill: var(--gold); } .plot .dot.s5 { fill: var(--gray); }
.plot .cell { fill: var(--heat); stroke: var(--faint); stroke-width: 1; }
.plot .count.dark { fill: var(--heat-ink); font-weight: 600; }
.plot .count.pale { fill: var(--quiet); opacity: 0.6; }
.plot .match { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.plot .mark { stroke: var(--paper); stroke-width: 1; }
.plot .mark.open { fill: var(--paper); stroke-width: 2.5; }
.plot .bar { stroke-width: 1.5; }
.plot .feedback { fill: var(--blue); } .plot .cloning { fill: var(--orange); }
.plot .fixed { fill: var(--gray); } .plot .none { fill: var(--pink); }
.plot .oracle { fill: var(--green); } .plot .other { fill: var(--gold); }
.plot .bar.feedback, .plot .chain.feedback { stroke: var(--blue); }
.plot .bar.cloning, .plot .open.cloning { stroke: var(--orange); }
.plot .open.cloning { fill: var(--paper); } .plot .chain { fill: none; }
.plot .bar.fixed, .plot .chain.fixed { stroke: var(--gray); }
.plot .bar.none { stroke: var(--pink); } .plot .bar.oracle { stroke: var(--green); }
.plot .bar.other { stroke: var(--gold); }
.plot .chain.feedback { stroke-dasharray: 5 3; }
"""

PAGE = """
:root { --sans: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif; --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, "Liberation Serif",
  Georgia, serif; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 67rem; padding: 2.5rem 1.5rem 5rem; background: var(--paper);
  color: var(--ink); font: 1.0625rem/1.6 var(--serif); overflow-wrap: break-word; }
h1, h2, h3 { font-family: var(--sans); line-height: 1.25; text-wrap: balance; }
h1 { font-size: 2rem; letter-spacing: -0.015em; margin: 0.2rem 0 0.8rem; }
h2 { font-size: 1.3rem; margin: 3.5rem 0 0.6rem; padding-top: 0.9rem;
  border-top: 1px solid var(--faint); }
h3 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
p, ul, ol { max-width: 42rem; margin: 0.6rem 0; }
a { color: var(--blue); text-decoration-thickness: 1px; text-underline-offset: 0.15em; }
.eyebrow, nav, .tile, table, dl, .card, .caption, details > summary, footer {
  font-family: var(--sans); }
.eyebrow { color: var(--quiet); font-size: 0.8125rem; letter-spacing: 0.02em; margin: 0; }
.lede { font-size: 1.1875rem; line-height: 1.5; max-width: 46rem; }
.note { border-left: 3px solid var(--gold); padding: 0.1rem 0 0.1rem 0.9rem; }
nav { margin: 1.4rem 0 0; font-size: 0.875rem; display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
.caption { color: var(--quiet); font-size: 0.875rem; line-height: 1.5; max-width: 46rem; }
.tiles { display: flex; flex-wrap: wrap;
  gap: 1px; margin: 1.8rem 0 0; background: var(--faint); border: 1px solid var(--faint); }
.tile { flex: 1 1 0; background: var(--paper); padding: 0.9rem 1.1rem 1rem; }
.tile b { display: block; font-size: 1.9rem; font-weight: 600; line-height: 1.2;
  letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile b small { font-size: 1rem; font-weight: 500; letter-spacing: 0; }
.tile .what { font-size: 0.875rem; } .tile .was { color: var(--quiet); font-size: 0.8125rem; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
  gap: 0.4rem 2.5rem; align-items: start; margin: 1.2rem 0; }
.narrow-only { display: none !important; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4; margin: 1.2rem 0;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; vertical-align: bottom; }
th, td { padding: 0.45rem 1.4rem 0.45rem 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } td.n.first { padding-left: 1.2rem; }
thead th { border-bottom: 1px solid var(--quiet); }
thead small { font-weight: 400; color: var(--quiet); }
tbody th { font-weight: 500; } tr.learned th { font-weight: 700; }
tr.learned { background: var(--wash); }
td .ends { display: block; color: var(--quiet); font-size: 0.75rem; }
table.key { width: 100%; max-width: 56rem; }
.swatch { display: inline-block; margin-right: 0.45rem; vertical-align: -0.12em; }
dl.guide { display: grid; grid-template-columns: minmax(9rem, 13rem) 1fr; gap: 0.7rem 1.6rem;
  max-width: 58rem; font-size: 0.9375rem; line-height: 1.5; }
dl.guide dt { font-weight: 600; } dl.guide dd { margin: 0; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.4rem;
  font-size: 0.875rem; max-width: 46rem; }
dl.facts dt { color: var(--quiet); } dl.facts dd { margin: 0; }
.stage-bar { display: inline-block; height: 0.7em; background: var(--blue); min-width: 1px; }
td.bar-cell { width: 100%; min-width: 6rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 0.9em; overflow-wrap: anywhere; }
.card { border-top: 2px solid var(--ink); padding: 0.9rem 0 0; margin: 2.4rem 0 0; }
.card h3 { font-size: 1.125rem; margin: 0.1rem 0 0.5rem; max-width: 46rem; }
.card .meta { color: var(--quiet); font-size: 0.8125rem; }
.card .gold { font-size: 0.9375rem; margin: 0 0 0.8rem; }
.card .sides { display: grid; grid-template-columns: minmax(0, 7fr) minmax(0, 6fr); gap: 0 2.6rem; }
.card h4 { font-size: 0.8125rem; color: var(--quiet); font-weight: 600; margin: 0.9rem 0 0.3rem; }
ol.passages { list-style: none; padding: 0; margin: 0; font-size: 0.875rem; line-height: 1.45; }
ol.passages li { padding: 0.4rem 0.6rem 0.4rem 0.7rem; border-left: 3px solid var(--faint);
  margin: 0 0 0.35rem; color: var(--quiet); }
ol.passages li.needed { border-left-color: var(--green); color: var(--ink); }
ol.passages li.chosen { background: var(--wash); color: var(--ink); }
.num { font-weight: 600; font-variant-numeric: tabular-nums; }
.tag { display: inline-block; font-size: 0.6875rem; font-weight: 600; line-height: 1.5;
  padding: 0 0.4rem; border-radius: 0.2rem; margin-left: 0.35rem; border: 1px solid; }
.tag.needed { color: var(--green); } .tag.chosen { color: var(--blue); }
.right { color: var(--green); } .wrong { color: var(--orange); }
.sides table { width: 100%; margin: 0; font-size: 0.8125rem; }
.sides th, .sides td { padding-right: 0.9rem; } .sides tr > :last-child { padding-right: 0; }
.sides td .term { display: block; color: var(--quiet); font-size: 0.75rem; }
.ids { white-space: nowrap; } .ids.many { white-space: normal; }
details > summary { cursor: pointer; font-size: 0.8125rem; color: var(--blue); margin: 0.3rem 0; }
footer { margin-top: 4rem; color: var(--quiet); font-size: 0.8125rem; }
@media (max-width: 60rem) { .tile { flex-basis: 40%; } }
@media (max-width: 46rem) {
  body { padding: 1.4rem 1rem 3rem; font-size: 1rem; }
  h1 { font-size: 1.6rem; } .lede { font-size: 1.0625rem; }
  .tile { padding: 0.7rem 0.8rem; }
  .tile b { font-size: 1.5rem; } .tile b small { font-size: 0.875rem; }
  .wide-only { display: none !important; } .narrow-only { display: block !important; }
  dl.guide { grid-template-columns: 1fr; gap: 0.1rem; } dl.guide dd { margin-bottom: 0.7rem; }
  .card .sides { grid-template-columns: minmax(0, 1fr); }
  table.stack, table.stack tbody, table.stack tr, table.stack th, table.stack td {
    display: block; }
  table.stack { width: 100%; } table.stack thead { display: none; }
  table.stack tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0.35rem 0.6rem;
    padding: 0.6rem 0.4rem 0.7rem; border-bottom: 1px solid var(--faint); }
  table.stack tbody th { grid-column: 1 / -1; } table.stack th, table.stack td { border: 0;
    padding: 0; text-align: left; white-space: normal; }
  table.stack td::before { content: attr(data-label); display: block; color: var(--quiet);
    font-size: 0.75rem; }
  table.stack td.zero { display: none; } table.stack td.first { padding-left: 0; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --faint: #ccc;
    --wash: #f3f3f3; --blue: #0072b2; --orange: #c05200; --green: #00795a; --pink: #b0578c;
    --gray: #62686e; --gold: #9a7400; --sky: #2b8cc4; --heat: #0072b2; --heat-ink: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  @page { margin: 16mm 14mm; }
  html { font-size: 80%; } body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, h4 { break-after: avoid; } h2 { margin-top: 1.6rem; }
  figure, .tile, tr, li, .panels > * { break-inside: avoid; }
  .lede { font-size: 11.5pt; } .tile b { font-size: 1.4rem; }
  .panels { grid-template-columns: 1fr 1fr; gap: 1rem 1.4rem; }
  details > summary { color: var(--quiet); list-style: none; }
}
"""

FIGURE = COLORS + PLOTS + "svg.plot { background: var(--paper); }\n"
"""For a figure in a file of its own."""

SHEET = COLORS + PLOTS + PAGE
"""For the page."""
