"""The style of a report's page: light and dark by the reader's preference, light on paper."""

STYLE = """
:root {
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1b2026; --muted: #66707b; --grid: #e2e6ea;
  --c0: #2464a8; --c1: #c2691c; --c2: #2f8058; --c3: #7b559e;
  --k0: #9cc3e6; --k1: #f2c48d; --k2: #a5d3b4; --k3: #cdb5e2;
  --k4: #f0b3b3; --k5: #d8d3a0; --k6: #a9d5d8; --k7: #c8ccd1;
  --on-block: #1b2026;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --panel: #1d2126; --ink: #e4e7ea; --muted: #98a2ad; --grid: #2e343b;
    --c0: #74aee8; --c1: #eda45c; --c2: #74c79b; --c3: #bd9be0;
    --k0: #41729f; --k1: #9c6a2e; --k2: #3d7d59; --k3: #71558f;
    --k4: #914a4a; --k5: #77713a; --k6: #3c7679; --k7: #59616a;
    --on-block: #ffffff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 0.95rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.55rem; line-height: 1.25; font-weight: 600; margin: 0 0 0.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.75rem 0 0.75rem; }
p { margin: 0.5rem 0; }
.muted, figcaption { color: var(--muted); }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.75rem; margin: 1.75rem 0 1rem; padding: 0; }
.numbers div { min-width: 7rem; }
.numbers dt { color: var(--muted); font-size: 0.82rem; }
.numbers dd { margin: 0; font-size: 1.5rem; font-weight: 600; letter-spacing: -0.01em; line-height: 1.3; }
.numbers dd small { font-size: 0.85rem; font-weight: 400; color: var(--muted); letter-spacing: 0; }
figure { margin: 0; }
figcaption { font-size: 0.86rem; margin-top: 0.5rem; max-width: 48rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.architecture .k0, .swatch.k0 { fill: var(--k0); background: var(--k0); }
.architecture .k1, .swatch.k1 { fill: var(--k1); background: var(--k1); }
.architecture .k2, .swatch.k2 { fill: var(--k2); background: var(--k2); }
.architecture .k3, .swatch.k3 { fill: var(--k3); background: var(--k3); }
.architecture .k4, .swatch.k4 { fill: var(--k4); background: var(--k4); }
.architecture .k5, .swatch.k5 { fill: var(--k5); background: var(--k5); }
.architecture .k6, .swatch.k6 { fill: var(--k6); background: var(--k6); }
.architecture .k7, .swatch.k7 { fill: var(--k7); background: var(--k7); }
.architecture text { fill: var(--muted); font-size: 9.5px; }
.architecture .option { fill: var(--on-block); font-size: 11px; font-weight: 600; text-anchor: middle; }
.architecture .stride { text-anchor: middle; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; margin: 0.5rem 0 0; padding: 0;
  font-size: 0.86rem;
}
.swatch {
  display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 2px; margin-right: 0.35rem;
  vertical-align: -0.08rem;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td { text-align: left; padding: 0.4rem 1.1rem 0.4rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; color: var(--muted); font-size: 0.82rem; }
td:first-child { white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.total td { border-bottom: 0; font-weight: 600; }
code, pre { font: 0.8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--panel); padding: 0.9rem 1.1rem; border-radius: 4px; overflow-x: auto; margin: 0.5rem 0; }
summary { cursor: pointer; margin: 0.35rem 0; }
.missing { border-left: 3px solid var(--grid); padding-left: 0.9rem; color: var(--muted); }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  figure, table, .numbers { break-inside: avoid; }
  h2 { break-after: avoid; margin-top: 1.5rem; }
  pre { white-space: pre-wrap; background: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
